"""Reads a block's safetensors file: hashed on the way, parsed no further than its header."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from llrun.errors import INTERNAL, RunError
from llrun.memory import ALIGNMENT, Array, is_aligned
from llrun.schema import FileEntry, Param

PIECE = 4 << 20
HEADER_LIMIT = 1 << 20
DTYPES = {"F32": "float32", "F16": "float16", "I8": "int8", "U8": "uint8", "I64": "int64", "I32": "int32"}
Advance = Callable[[int], None]


class Stored(msgspec.Struct, frozen=True):
    """One entry of a safetensors header; offsets in bytes from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


@dataclass(frozen=True)
class Source:
    """A block's file: where it lies, what the bundle says of it, and the entries that the block takes."""

    path: Path
    entry: FileEntry
    params: tuple[Param, ...]


def read_weights(
    file: FileIO, source: Source, into: NDArray[np.uint8], verify: bool, advance: Advance
) -> tuple[Array, ...]:
    """The arrays of `source.params`, in their order, from the safetensors file that `file` is open on.

    `into`: memory of the file's size that it is read into. Raises RunError R201 when the file cannot be read, R202
    when its bytes are not those of the bundle, R203 when its entries are not the params.
    """
    view = into.data
    digest = hashlib.sha256()
    for start, stop in pieces(len(view)):
        piece = view[start:stop]
        fill(file, piece, start, source)
        if verify:
            digest.update(piece)
        advance(stop - start)
    if verify and digest.hexdigest() != source.entry.sha256:
        raise damaged(source.path, digest.hexdigest(), source.entry.sha256)
    stored, start = header(source.path, into)
    return tuple(view_of(source.path, into, start, stored, param) for param in source.params)


def pieces(size: int) -> Iterator[tuple[int, int]]:
    """Start and stop of pieces of at most PIECE bytes."""
    return ((start, min(start + PIECE, size)) for start in range(0, size, PIECE))


def fill(file: FileIO, view: memoryview, start: int, source: Source) -> None:
    """Read the bytes from `start` into all of `view`. Raises RunError R201 when the file has fewer or fails."""
    done = 0
    while done < len(view):
        try:
            count = os.preadv(file.fileno(), [view[done:]], start + done)
        except OSError as error:
            raise RunError("R201", f"cannot read {source.path}: {error.strerror}") from error
        if not count:
            raise RunError(
                "R201",
                f"cannot read {source.path}: it ends after {start + done} bytes, the bundle says "
                f"{source.entry.size_bytes}. Copy the slice again.",
            )
        done += count


def stamp(file: FileIO) -> tuple[int, int]:
    """What changes when an open file does: its size, and the time of its last change in nanoseconds."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def changed(file: Path | str) -> RunError:
    """The error for a file that is no longer what was hashed."""
    return RunError(
        "R209",
        f"{file} was changed while it was in use: copy the slice again, and start llrun again",
        INTERNAL,
    )


def damaged(path: Path, found: str, expected: str) -> RunError:
    return RunError(
        "R202", f"{path} is damaged: its sha256 is {found}, the bundle says {expected}. Copy the slice again."
    )


def header(path: Path, buffer: NDArray[np.uint8]) -> tuple[dict[str, Stored], int]:
    size = int.from_bytes(buffer[:8].tobytes(), "little")
    if len(buffer) < 8 or size > min(HEADER_LIMIT, len(buffer) - 8):
        raise RunError("R203", f"{path} is not a safetensors file: its header claims {size} bytes")
    try:
        raw = msgspec.json.decode(buffer[8 : 8 + size].tobytes(), type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        return {name: msgspec.json.decode(text, type=Stored) for name, text in raw.items()}, 8 + size
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RunError("R203", f"{path} is not a safetensors file: {error}") from error


def view_of(
    path: Path, buffer: NDArray[np.uint8], start: int, stored: dict[str, Stored], param: Param
) -> Array:
    entry = stored.get(param.name)
    if entry is None:
        raise RunError("R203", f"{path} has no entry {param.name}")
    dtype = DTYPES.get(entry.dtype)
    begin, end = entry.data_offsets
    if (dtype, entry.shape) != (param.dtype, param.shape):
        raise RunError(
            "R203",
            f"{path}: entry {param.name} is {entry.dtype} {list(entry.shape)},"
            f" the slice says {param.dtype} {list(param.shape)}",
        )
    size = prod(param.shape) * np.dtype(param.dtype).itemsize
    if not 0 <= begin <= end <= len(buffer) - start or end - begin != size:
        raise RunError("R203", f"{path}: entry {param.name} lies at {begin}..{end}, it needs {size} bytes")
    array: Array = buffer[start + begin : start + end].view(param.dtype).reshape(param.shape)
    if not is_aligned(array):
        raise RunError("R203", f"{path}: entry {param.name} is not aligned to {ALIGNMENT} bytes")
    return array
