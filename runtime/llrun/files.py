"""Files of a folder that nobody vouches for: opened once, inside it, and used through what was opened."""

from __future__ import annotations

import os
import stat
from io import FileIO
from pathlib import Path, PurePosixPath

from llrun.errors import RunError
from llrun.schema import Manifest, SchemaError, decode

MANIFEST = "manifest.json"
TEXT_LIMIT = 64 << 20
NAME_LIMIT, PART_LIMIT = 1024, 255
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def name_fault(name: str) -> str | None:
    """What keeps `name` from being a file's inside a folder, as bundles write them; None when nothing does."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return "is outside its folder"
    if not name.isprintable():
        return "holds characters that cannot be printed"
    if not path.parts or path.as_posix() != name:
        return "is not written as a path is: parts divided by single slashes"
    if len(name) > NAME_LIMIT or any(len(part.encode()) > PART_LIMIT for part in path.parts):
        return f"is longer than {NAME_LIMIT} characters, or {PART_LIMIT} bytes between two slashes"
    return None


class NotPlain(Exception):
    """A name that is no plain file inside its folder; the text says what it is instead."""


def plain_file(folder: Path, name: str) -> FileIO:
    """The file `name` of `folder`, for reading: a plain file to which no symbolic link inside `folder` leads.

    Raises NotPlain for anything else, OSError when it is missing or cannot be read.
    """
    fault = name_fault(name)
    if fault:
        raise NotPlain(fault)
    *folders, last = PurePosixPath(name).parts
    inside = os.open(folder, _DIRECTORY & ~os.O_NOFOLLOW)
    try:
        for part in folders:
            _refuse(f"{part} ", os.stat(part, dir_fd=inside, follow_symlinks=False).st_mode, stat.S_IFDIR)
            deeper = os.open(part, _DIRECTORY, dir_fd=inside)
            os.close(inside)
            inside = deeper
        # Looked at before it is opened, for opening a device can do things; and after, for it may be another.
        _refuse("", os.stat(last, dir_fd=inside, follow_symlinks=False).st_mode, stat.S_IFREG)
        file = FileIO(os.open(last, _FILE, dir_fd=inside), "r")
    finally:
        os.close(inside)
    try:
        _refuse("", os.fstat(file.fileno()).st_mode, stat.S_IFREG)
    except NotPlain:
        file.close()
        raise
    return file


def open_inside(folder: Path, name: str) -> FileIO:
    """`plain_file` for a bundle's. Raises RunError R201 when it is missing or cannot be read, R202 for anything but a
    plain file inside `folder`."""
    try:
        return plain_file(folder, name)
    except NotPlain as fault:
        raise RunError("R202", f"{folder}: file {name!r} {fault}. Copy it again.") from fault
    except OSError as error:
        reason = error.strerror or error
        raise RunError("R201", f"cannot read {folder / name}: {reason}. Copy it again.") from error


def size_of(file: FileIO) -> int:
    return os.fstat(file.fileno()).st_size


def read_text(folder: Path, name: str) -> bytes:
    """All of a small file. Raises RunError as `open_inside`, and R202 beyond TEXT_LIMIT bytes."""
    try:
        with open_inside(folder, name) as file:
            size = size_of(file)
            text = b"" if size > TEXT_LIMIT else file.read(TEXT_LIMIT + 1)
    except OSError as error:
        raise RunError("R201", f"cannot read {folder / name}: {error.strerror or error}") from error
    if max(size, len(text)) > TEXT_LIMIT:
        raise RunError("R202", f"{folder / name} has {max(size, len(text))} bytes, more than {TEXT_LIMIT}")
    return text


def read_manifest(bundle: Path) -> Manifest:
    """The manifest of `bundle`, its digest checked. Raises RunError R201 when it cannot be read, R202 when it is
    damaged, edited or no manifest."""
    try:
        return decode(read_text(bundle, MANIFEST), Manifest)
    except SchemaError as error:
        raise RunError("R202", f"{bundle / MANIFEST}: {error}") from error
    except ValueError as error:
        raise RunError("R202", f"{bundle / MANIFEST} is damaged: {error}. Copy the bundle again.") from error


def _refuse(who: str, mode: int, kind: int) -> None:
    """Raise NotPlain for what is not of `kind`, a folder or a plain file."""
    if stat.S_IFMT(mode) != kind:
        wanted = "a folder" if kind == stat.S_IFDIR else "a plain file"
        raise NotPlain(f"{who}is {_KINDS.get(stat.S_IFMT(mode), 'something else')}, not {wanted}")


_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFREG: "a plain file",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
