"""The private folder in which each process of llrun keeps a record of itself, for as long as it lives."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

import msgspec

from llrun.errors import RunError

NAME = "llrun"
SUFFIX = ".json"
RECORD_LIMIT = 1 << 16
PROC = Path("/proc")


class Role(StrEnum):
    """What a process is. `local`: a head whose workers are processes that it started."""

    WORKER = "worker"
    HEAD = "head"
    LOCAL = "local"
    SERVE = "serve"


class State(StrEnum):
    """`loading`: weights are read, devices connected. `waiting`: there is nothing to do."""

    LOADING = "loading"
    WAITING = "waiting"
    SERVING = "serving"


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A process of llrun. `started_ticks`: when the system started it, in its own ticks, so that another process of
    the same number is not taken for it. `namespace`: of process numbers. `address`: where it listens, empty where it
    does not. `sequences`: that are open."""

    pid: int
    started_ticks: int
    namespace: int
    role: Role
    bundle: str
    path: str
    model: str
    device: str
    address: str = ""
    state: State = State.LOADING
    sequences: int = 0

    @property
    def name(self) -> str:
        """Of its file: containers that share a folder have the same numbers for other processes."""
        return f"{self.namespace}-{self.pid}{SUFFIX}"


def run_folder() -> Path:
    """Where the records of this user's processes are: for as long as the user is logged in, or the machine runs."""
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    if given and os.path.isabs(given) and os.path.isdir(given):
        return Path(given) / NAME
    return Path(tempfile.gettempdir()) / f"{NAME}-{os.getuid()}"


def fault_of(folder: Path) -> str | None:
    """Why nothing in `folder` can be believed: whoever else can write there could write anything. None where nothing
    is wrong, or nothing is there."""
    try:
        found = os.lstat(folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"cannot be looked at: {error.strerror}"
    if not stat.S_ISDIR(found.st_mode):
        return "is not a folder"
    if found.st_uid != os.getuid():
        return f"belongs to user {found.st_uid}, not to {os.getuid()}"
    if found.st_mode & 0o077:
        return f"is open to others (mode {stat.S_IMODE(found.st_mode):o})"
    return None


def write(folder: Path, record: Record) -> None:
    """Write the record in one piece. Raises OSError where it cannot be, or must not."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    fault = fault_of(folder)
    if fault:
        raise PermissionError(f"{folder} {fault}")
    new = folder / f"{record.name}.new"
    new.write_bytes(msgspec.json.encode(record))
    new.replace(folder / record.name)


def forget(folder: Path, name: str) -> None:
    """Remove a record, where there is one."""
    for each in (name, f"{name}.new"):
        with suppress(OSError):
            (folder / each).unlink()


def running(folder: Path) -> list[Record]:
    """The records of processes that live, by their numbers; those of others are removed.

    Raises RunError R150 for a folder that is not this user's alone.
    """
    fault = fault_of(folder)
    if fault:
        raise RunError("R150", f"{folder} {fault}: what is in it is not believed. Remove it")
    return sorted(_living(folder), key=lambda record: record.pid)


def _living(folder: Path) -> Iterator[Record]:
    here = namespace()
    try:
        names = sorted(os.listdir(folder))
    except OSError:  # there is none: nothing was ever started, or could say so
        return
    for name in names:
        record = _read(folder / name)
        if record is None or record.name != name or record.namespace != here:
            continue
        if started_ticks(record.pid) == record.started_ticks:
            yield record
        else:
            forget(folder, name)


def _read(path: Path) -> Record | None:
    """What a record says; None for anything else."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        try:
            return msgspec.json.decode(file.read(RECORD_LIMIT), type=Record)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None


def namespace() -> int:
    """Which numbering of processes this one is in; 0 where the system does not say."""
    with suppress(OSError):
        return os.stat("/proc/self/ns/pid").st_ino
    return 0


def started_ticks(pid: int) -> int | None:
    """When the system started the process, in its ticks since the machine began (proc(5)).

    None for one that is not there, or has ended.
    """
    with suppress(OSError, ValueError, IndexError):
        fields = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    return None
