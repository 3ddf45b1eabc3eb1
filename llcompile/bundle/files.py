"""Files of a bundle in the making: copied, linked or written, and hashed on the way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from llcompile.ir.errors import CompileError
from llrun.schema import FileEntry

_COPY_BYTES = 1 << 20


class FileSet:
    """The files written below `root`, by their name relative to it with forward slashes; an OSError bears it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.entries: dict[str, FileEntry] = {}

    def write(self, name: str, data: bytes, executable: bool = False) -> None:
        with _named(name):
            path = self._place(name)
            path.write_bytes(data)
            path.chmod(0o755 if executable else 0o644)
        self.entries[name] = FileEntry(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def copy(self, name: str, source: Path) -> None:
        """Copy `source`. Raises CompileError B103 when it cannot be read."""
        digest, size = hashlib.sha256(), 0
        with _named(name), open(self._place(name), "wb") as writing:
            for data in _pieces(source):
                writing.write(data)
                digest.update(data)
                size += len(data)
        self.entries[name] = FileEntry(size_bytes=size, sha256=digest.hexdigest())

    def repeat(self, name: str, existing: str) -> None:
        """A file with the content of `existing`: another name of it where that is possible, else a copy."""
        try:
            os.link(self.root / existing, self._place(name))
        except OSError:
            self.copy(name, self.root / existing)
        self.entries[name] = self.entries[existing]

    def make(self, name: str, maker: Callable[[Path], FileEntry]) -> None:
        """A file that `maker` writes and hashes."""
        self.entries[name] = maker(self._place(name))

    def _place(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Have what the file system refuses say of which file, by its name in the bundle, whose folder has another yet."""
    try:
        yield
    except OSError as error:
        error.filename = name
        raise


def _pieces(source: Path) -> Iterator[bytes]:
    try:
        with open(source, "rb") as file:
            while data := file.read(_COPY_BYTES):
                yield data
    except OSError as error:
        raise CompileError("B103", f"cannot read {source}: {error.strerror}") from error
