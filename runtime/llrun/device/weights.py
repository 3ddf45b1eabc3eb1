"""Reads a block's safetensors file: hashed while it is read, never parsed beyond its header, never
repacked."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import FileIO
from math import prod
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from llrun.errors import RunError
from llrun.memory import ALIGNMENT, Array, is_aligned
from llrun.schema import FileEntry, Param

PIECE = 4 << 20
HEADER_LIMIT = 1 << 20
DTYPES = {"F32": "float32", "F16": "float16", "I8": "int8", "U8": "uint8", "I64": "int64", "I32": "int32"}
Progress = Callable[[int], None]
_POPULATE_WRITE = (
    23  # MADV_POPULATE_WRITE, which Python does not name: fault pages in as if they were written to
)


class Stored(msgspec.Struct, frozen=True):
    """One entry of a safetensors header; offsets in bytes from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def read_weights(
    path: Path,
    entry: FileEntry,
    params: Sequence[Param],
    into: NDArray[np.uint8] | mmap.mmap,
    verify: bool,
    progress: Progress,
) -> tuple[Array, ...]:
    """The arrays of `params`, in their order, from the safetensors file at `path`.

    `into`: memory of the file's size that the file is read into, or the file's own mapping (`map_table`),
    which is used as it is. Raises RunError R201 when the file is missing or has another size, R202 when its
    bytes are not those of `entry`, R203 when its entries are not `params`.
    """
    try:
        with FileIO(path) as file:
            _check_size(file, entry)
            if isinstance(into, mmap.mmap):
                buffer = np.frombuffer(into, np.uint8)
                digest = _hash(file, entry, progress) if verify else ""
            else:
                buffer, digest = into, _read(file, into, verify, progress)
    except (OSError, ValueError) as error:
        raise RunError("R201", f"cannot read {path}: {error}. Copy the slice again.") from error
    if verify and digest != entry.sha256:
        raise damaged(path, digest, entry.sha256)
    stored, start = _header(path, buffer)
    return tuple(_view(path, buffer, start, stored, param) for param in params)


def damaged(path: Path, found: str, expected: str) -> RunError:
    return RunError(
        "R202", f"{path} is damaged: its sha256 is {found}, the bundle says {expected}. Copy the slice again."
    )


def map_table(path: Path, entry: FileEntry) -> mmap.mmap:
    """The file at `path` mapped instead of read: for tables of which a token reads one row. Raises RunError R201."""
    try:
        with FileIO(path) as file:
            _check_size(file, entry)
            # Copy-on-write, because read-only arrays cannot be handed to kernels; nothing writes to it.
            return mmap.mmap(file.fileno(), entry.size_bytes, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        raise RunError("R201", f"cannot read {path}: {error}. Copy the slice again.") from error


def take_rows(region: mmap.mmap, arrays: Sequence[Array], rows: Sequence[int]) -> None:
    """Make the pages of these rows of `arrays`, which lie in the mapped file `region`, resident and no others.
    Rows that an array lacks are passed over; so is everything where the kernel is older than Linux 5.14."""
    base = np.frombuffer(region, np.uint8).ctypes.data
    with suppress(OSError):
        for array in arrays:
            start, step = array.ctypes.data - base, array.nbytes // max(len(array), 1)
            for row in rows:
                if 0 <= row < len(array):
                    first = (start + row * step) // mmap.PAGESIZE * mmap.PAGESIZE
                    region.madvise(_POPULATE_WRITE, first, start + (row + 1) * step - first)


def _read(file: FileIO, into: NDArray[np.uint8], verify: bool, progress: Progress) -> str:
    view = into.data
    digest = hashlib.sha256()
    done = 0
    while done < len(view):
        count = file.readinto(view[done : done + PIECE])
        if not count:
            raise ValueError(f"it has {done} bytes, the bundle says {len(view)}")
        if verify:
            digest.update(view[done : done + count])
        done += count
        progress(count)
    return digest.hexdigest()


def _hash(file: FileIO, entry: FileEntry, progress: Progress) -> str:
    digest = hashlib.sha256()
    piece = memoryview(bytearray(min(PIECE, entry.size_bytes)))
    while count := file.readinto(piece):
        digest.update(piece[:count])
        progress(count)
    return digest.hexdigest()


def _check_size(file: FileIO, entry: FileEntry) -> None:
    size = file.seek(0, 2)
    file.seek(0)
    if size != entry.size_bytes:
        raise ValueError(f"it has {size} bytes, the bundle says {entry.size_bytes}")


def _header(path: Path, buffer: NDArray[np.uint8]) -> tuple[dict[str, Stored], int]:
    size = int.from_bytes(buffer[:8].tobytes(), "little")
    if len(buffer) < 8 or size > min(HEADER_LIMIT, len(buffer) - 8):
        raise RunError("R203", f"{path} is not a safetensors file: its header claims {size} bytes")
    try:
        raw = msgspec.json.decode(buffer[8 : 8 + size].tobytes(), type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        return {name: msgspec.json.decode(text, type=Stored) for name, text in raw.items()}, 8 + size
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RunError("R203", f"{path} is not a safetensors file: {error}") from error


def _view(
    path: Path, buffer: NDArray[np.uint8], start: int, stored: dict[str, Stored], param: Param
) -> Array:
    entry = stored.get(param.name)
    if entry is None:
        raise RunError("R203", f"{path} has no entry {param.name}")
    dtype = DTYPES.get(entry.dtype)
    begin, end = entry.data_offsets
    size = prod(param.shape) * np.dtype(param.dtype).itemsize
    if (dtype, entry.shape) != (param.dtype, param.shape):
        raise RunError(
            "R203",
            f"{path}: entry {param.name} is {entry.dtype} {list(entry.shape)},"
            f" the slice says {param.dtype} {list(param.shape)}",
        )
    if not 0 <= begin <= end <= len(buffer) - start or end - begin != size:
        raise RunError("R203", f"{path}: entry {param.name} lies at {begin}..{end}, it needs {size} bytes")
    array: Array = buffer[start + begin : start + end].view(param.dtype).reshape(param.shape)
    if not is_aligned(array):
        raise RunError("R203", f"{path}: entry {param.name} is not aligned to {ALIGNMENT} bytes")
    return array
