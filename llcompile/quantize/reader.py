"""Reading a checkpoint's tensors, or a GGUF file's, by bounded ranges of rows, as float32.

By pread, never mmap: resident pages of a mapping count as memory of the build.
"""

from __future__ import annotations

import os
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from llcompile.gguf import BLOCKS, dequantise, row_bytes
from llcompile.ir.errors import CompileError
from llcompile.ir.model import WeightSource
from llcompile.ir.shard import WeightCut
from llcompile.quantize.synthetic import random_flat

Floats = npt.NDArray[np.float32]
_STORED: dict[str, np.dtype[Any]] = {"f32": np.dtype("<f4"), "f16": np.dtype("<f2"), "bf16": np.dtype("<u2")}


def read_rows(source: WeightSource, start: int, stop: int, seed: int = 0) -> Floats:
    """Rows start..stop-1 of `source` along its first dimension: float32 (stop - start, *shape[1:]).

    `seed` matters to random sources only. Raises CompileError Q101 when the file ends inside the tensor, Q102
    when it cannot be read, Q103 when its dtype is neither one of f32, f16, bf16 nor of GGUF's blocks.
    """
    shape = (stop - start, *source.shape[1:])
    width = prod(source.shape[1:])
    start, stop = source.rows_before + start, source.rows_before + stop
    if source.path is None:
        return random_flat(source, seed, start * width, stop * width).reshape(shape)
    if source.dtype not in _STORED and source.dtype not in BLOCKS:
        raise CompileError(
            "Q103",
            f"tensor {source.name} of {source.path} has dtype {source.dtype}; supported: f32, f16, bf16",
        )
    if source.transpose:
        rows = _to_float32(_read_columns(source, start, stop), source.dtype)
    elif source.dtype not in BLOCKS:
        rows = _to_float32(_read_in_order(source, start, stop, width), source.dtype)
    elif len(source.shape) > 1:
        rows = dequantise(_read_in_order(source, start, stop, width), source.dtype)
    else:  # blocks run along a vector
        rows = dequantise(_read_in_order(source, 0, 1, source.stored_rows), source.dtype)[0, start:stop]
    if source.added:
        rows = rows - np.float32(source.added)
    return rows.reshape(shape)


def _read_in_order(source: WeightSource, start: int, stop: int, width: int) -> npt.NDArray[Any]:
    """Rows start..stop-1 of `width` numbers as stored, in the order of the graph: (stop - start, numbers or bytes)."""
    first, last, chosen = _stored_range(source, start, stop)
    if source.dtype in BLOCKS:
        raw = np.empty((last - first, row_bytes(source.dtype, width)), np.uint8)
    else:
        raw = np.empty((last - first, width), _STORED[source.dtype])
    _read(source, [raw], [source.offset + first * raw.strides[0]])
    return raw if chosen is None else raw[chosen]


def _stored_range(
    source: WeightSource, start: int, stop: int
) -> tuple[int, int, npt.NDArray[np.int64] | None]:
    """(first, last, chosen): where rows start..stop-1 of the graph are stored: all of first..last-1, or those `chosen`
    of them, which are whole heads."""
    if not source.pairs:
        return start, stop, None
    size = source.stored_rows // source.pairs
    heads, within = np.divmod(np.arange(start, stop), size)
    stored = heads * size + within % (size // 2) * 2 + within // (size // 2)
    first, last = start // size * size, -(-stop // size) * size
    return first, last, stored - first


def read_part(source: WeightSource, cut: WeightCut, start: int, stop: int, seed: int = 0) -> Floats:
    """Rows start..stop-1 of what `cut` leaves of the rows of `source`, each whole: as read_rows."""
    if cut.axis != 0:
        return read_rows(source, start, stop, seed)
    parts, place = [], 0
    for first, last in cut.ranges:
        low, high = max(start, place), min(stop, place + last - first)
        if low < high:
            parts.append(read_rows(source, first + low - place, first + high - place, seed))
        place += last - first
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def cut_shape(shape: tuple[int, ...], cut: WeightCut) -> tuple[int, ...]:
    """The shape of what `cut` leaves of a weight."""
    if cut.axis is None:
        return shape
    size = sum(stop - start for start, stop in cut.ranges)
    return (*shape[: cut.axis], size, *shape[cut.axis + 1 :])


def _read_columns(source: WeightSource, start: int, stop: int) -> npt.NDArray[Any]:
    """Columns start..stop-1 of the stored (K, N) matrix, transposed: (stop - start, K), stored dtype."""
    columns, rows = source.stored_rows, source.shape[1]
    dtype = _STORED[source.dtype]
    band = np.empty((rows, stop - start), dtype)
    if stop - start == columns:
        _read(source, [band], [source.offset])
    else:
        offsets = [source.offset + (row * columns + start) * dtype.itemsize for row in range(rows)]
        _read(source, list(band), offsets)
    return np.ascontiguousarray(band.T)


def _read(source: WeightSource, buffers: list[npt.NDArray[Any]], offsets: list[int]) -> None:
    """Fill each contiguous buffer from its offset in the file of `source`."""
    assert source.path is not None
    try:
        descriptor = os.open(source.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for buffer, offset in zip(buffers, offsets, strict=True):
                _fill(source, descriptor, buffer.data.cast("B"), offset)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CompileError(
            "Q102", f"cannot read tensor {source.name} of {source.path}: {error.strerror}"
        ) from error


def _fill(source: WeightSource, descriptor: int, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            end = source.offset + _stored_bytes(source)
            raise CompileError(
                "Q101",
                f"{source.path} is truncated: tensor {source.name} ends at byte {end}, the file at byte "
                f"{offset + done}. Download the file again.",
            )
        done += count


def _stored_bytes(source: WeightSource) -> int:
    """What the whole tensor takes in its file."""
    width = prod(source.shape[1:])
    if source.dtype in BLOCKS:
        return row_bytes(source.dtype, source.stored_rows * width)
    return source.stored_rows * width * _STORED[source.dtype].itemsize


def _to_float32(raw: npt.NDArray[Any], dtype: str) -> Floats:
    if dtype == "bf16":
        wide = raw.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return raw.astype(np.float32, copy=False)
