"""A block's safetensors file: where each tensor lies, and a writer that hashes what it writes.

Every tensor starts on a page of the file, so that it can be mapped and read with aligned vector loads. The
official library refuses holes: what lies between is made of explicit entries `pad.<n>` of uint8, and the
header ends in spaces.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from llcompile.ir.errors import INTERNAL, USAGE, CompileError
from llcompile.ir.packing import PackedParam, pad
from llrun.schema import FileEntry

PAGE = 4096
_DTYPES = {"float32": "F32", "float16": "F16", "int8": "I8", "uint8": "U8"}
_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class FileLayout:
    """`header`: the first bytes, a whole number of pages. `offsets`: of each tensor, absolute, bytes."""

    header: bytes
    offsets: Mapping[str, int]
    size_bytes: int


def file_layout(params: Sequence[PackedParam]) -> FileLayout:
    """Lay `params` out in order, each on a page boundary."""
    entries: dict[str, dict[str, object]] = {}
    position = 0
    for param in params:
        start = pad(position, PAGE)
        if start > position:
            entries[f"pad.{len(entries)}"] = _entry("uint8", (start - position,), position, start)
        position = start + param.nbytes
        entries[param.name] = _entry(param.dtype, param.shape, start, position)
    text = json.dumps(entries, separators=(",", ":")).encode()
    text = text.ljust(pad(8 + len(text), PAGE) - 8)
    header = len(text).to_bytes(8, "little") + text
    offsets = {name: len(header) + _start(entry) for name, entry in entries.items()}
    return FileLayout(header, offsets, len(header) + position)


def _entry(dtype: str, shape: tuple[int, ...], start: int, stop: int) -> dict[str, object]:
    return {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [start, stop]}


def _start(entry: Mapping[str, object]) -> int:
    offsets = entry["data_offsets"]
    assert isinstance(offsets, list)
    return int(offsets[0])


class HashedFile:
    """A file written beside its place and renamed when complete; removed when the `with` body fails.

    `append` writes at the end and hashes. `write_at` writes ahead of the end; `advance` later reads that part
    back and hashes it, so that scales need not be held until all of their matrix's data are out. `position`:
    bytes hashed. Raises CompileError Q106 when the file system refuses.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        self._digest = hashlib.sha256()
        self.position = 0

    def __enter__(self) -> HashedFile:
        try:
            self._file = open(self._partial, "w+b", buffering=0)
        except OSError as error:
            raise write_error(self._path, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None:
            os.replace(self._partial, self._path)
        else:
            self._partial.unlink(missing_ok=True)

    def append(self, data: bytes | memoryview) -> None:
        self.write_at(self.position, data)
        self._digest.update(data)
        self.position += len(data)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        try:
            while view:
                count = os.pwrite(self._file.fileno(), view, offset)
                view, offset = view[count:], offset + count
        except OSError as error:
            raise write_error(self._path, error) from error

    def advance(self, stop: int) -> None:
        """Hash up to offset `stop` what was placed there; what was not is zeros."""
        if stop > self.position:
            self._file.truncate(max(stop, os.fstat(self._file.fileno()).st_size))
        while self.position < stop:
            piece = os.pread(self._file.fileno(), min(_COPY_BYTES, stop - self.position), self.position)
            self._digest.update(piece)
            self.position += len(piece)

    def result(self) -> FileEntry:
        return FileEntry(size_bytes=self.position, sha256=self._digest.hexdigest())


def write_error(path: Path, error: OSError) -> CompileError:
    """What to tell the user when `path` cannot be written."""
    wrong_use = isinstance(error, PermissionError | FileNotFoundError | NotADirectoryError)
    remedy = "" if wrong_use else " Free some space, or choose another place with -o."
    return CompileError(
        "Q106", f"cannot write {path}: {error.strerror}.{remedy}", USAGE if wrong_use else INTERNAL
    )
