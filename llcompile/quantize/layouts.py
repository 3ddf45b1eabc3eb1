"""Packing matrices into the layouts of ir/packing.py, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llcompile.ir.errors import CompileError
from llcompile.ir.packing import BITS, GROUP, Layout, pad
from llcompile.quantize.feedback import SPAN, Factors, quantise_with_feedback
from llcompile.quantize.formats import Codes, Floats, Scales, code_range, dequantise, quantise

Array = npt.NDArray[Any]
_FLOATS: dict[str, np.dtype[Any]] = {"f32": np.dtype("<f4"), "f16": np.dtype("<f2")}


def pack(
    matrix: Floats,
    layout: Layout,
    name: str,
    factors: Factors | None = None,
    columns: Sequence[tuple[int, int]] | None = None,
) -> dict[str, Array]:
    """Stored arrays, by part, of a band of whole rows (rows, K) of a matrix (any shape when plain).

    The result has the shapes of `packed_params` for the band; bands of whole tiles follow one another in the
    file. `name` is for the message. `factors`: round with error feedback, in formats of fewer than 8 bits. `columns`:
    the ranges of input features to store, of tiled quantised matrices at multiples of 32 but for K; what is stored is
    what it would be in the whole. Raises CompileError Q104 for weights that are not finite, Q105 for those that the
    format cannot hold.
    """
    if columns is not None:
        if factors is None or not has_feedback(layout.format):
            matrix = np.concatenate([matrix[:, start:stop] for start, stop in columns], axis=1)
        else:
            parts = [_pack_columns(matrix, layout, name, factors, *each) for each in columns]
            return {part: np.concatenate([each[part] for each in parts], axis=1) for part in parts[0]}
    if layout.kind == "plain" or layout.format in _FLOATS:
        data = _cast(matrix, "f32" if layout.kind == "plain" else layout.format, name)
        if layout.kind == "tiled":
            data = np.ascontiguousarray(_tiles(data, layout.tile_rows).transpose(0, 2, 1))
        return {"data": data}
    width = pad(matrix.shape[1], GROUP)
    wide = np.pad(matrix, ((0, 0), (0, width - matrix.shape[1]))) if width > matrix.shape[1] else matrix
    if layout.kind == "tiled":
        wide = _tiles(wide, layout.tile_rows)
    bits = BITS[layout.format]
    if factors is not None and has_feedback(layout.format):
        codes, scales = quantise_with_feedback(wide.reshape(-1, width), factors, bits)
    else:
        codes, scales = quantise(wide.reshape(-1, GROUP).T, bits)
    if not np.isfinite(scales).all():
        raise unfit(matrix, layout.format, name)
    if layout.kind == "rows":
        return {
            "data": np.ascontiguousarray(codes.T).reshape(-1, width),
            "scales": scales.reshape(-1, width // GROUP),
        }
    return _tile_codes(codes, scales, layout, width // GROUP)


def has_feedback(format: str) -> bool:
    """Whether matrices in `format` are rounded for what multiplies them."""
    return BITS.get(format, 8) < 8


def _pack_columns(
    matrix: Floats, layout: Layout, name: str, factors: Factors, start: int, stop: int
) -> dict[str, Array]:
    """Features start..stop-1 of a tiled matrix, rounded as in the whole: errors stay within a span."""
    first, last = start // SPAN, pad(stop, SPAN) // SPAN
    own = Factors(factors.spread[first:last], factors.importance[first:last])
    parts = pack(matrix[:, first * SPAN : last * SPAN], layout, name, own)
    groups = slice((start - first * SPAN) // GROUP, pad(stop - first * SPAN, GROUP) // GROUP)
    return {part: array[:, groups] for part, array in parts.items()}


def unpack(parts: Mapping[str, Array], layout: Layout, shape: tuple[int, ...]) -> Floats:
    """Inverse of `pack` up to rounding: the float32 tensor of `shape` that kernels compute with."""
    if layout.kind == "plain":
        return parts["data"].astype(np.float32).reshape(shape)
    rows, columns = shape
    if layout.format in _FLOATS:
        data = parts["data"] if layout.kind == "rows" else parts["data"].transpose(0, 2, 1)
        return data.reshape(-1, columns)[:rows].astype(np.float32)
    if layout.kind == "rows":
        codes, scales = parts["data"].reshape(-1, GROUP).T, parts["scales"].reshape(-1)
    else:
        codes, scales = _untile_codes(parts["data"], parts["scales"], layout)
    wide = dequantise(codes, scales).T.reshape(-1, pad(columns, GROUP))
    return np.ascontiguousarray(wide[:rows, :columns])


def _cast(matrix: Floats, format: str, name: str) -> Array:
    with np.errstate(over="ignore"):
        data: Array = matrix.astype(_FLOATS[format], copy=False)
    if not np.isfinite(data).all():
        raise unfit(matrix, format, name)
    return data


def unfit(matrix: Floats, format: str, name: str) -> CompileError:
    """What to tell the user of rows of tensor `name` that `format` cannot hold."""
    wrong = int(matrix.size - np.isfinite(matrix).sum())
    if wrong:
        return CompileError(
            "Q104",
            f"tensor {name} holds weights that are not finite ({wrong} of the {matrix.size} read): "
            "the checkpoint is damaged; download it again",
        )
    largest = float(np.abs(matrix).max())
    limit = 65504.0 * (-code_range(BITS[format])[0] if format in BITS else 1)
    return CompileError(
        "Q105", f"tensor {name} holds the weight {largest:g}, {format} reaches {limit:g}. Use --quant f32."
    )


def _tiles(matrix: Array, tile_rows: int) -> Array:
    """(rows, K) -> (tiles, tile_rows, K), zero rows added at the end."""
    rows, columns = matrix.shape
    padded = pad(rows, tile_rows)
    if padded > rows:
        matrix = np.pad(matrix, ((0, padded - rows), (0, 0)))
    return matrix.reshape(-1, tile_rows, columns)


def _tile_codes(codes: Codes, scales: Scales, layout: Layout, groups: int) -> dict[str, Array]:
    """Codes (32, tiles * R * groups) -> (tiles, groups, loads, R, 4), moved as words of 4 bytes."""
    r, bits = layout.tile_rows, BITS[layout.format]
    stored: Array = codes.view(np.uint8)
    if bits < 8:
        stored = _folded(stored + np.uint8(1 << bits - 1), bits)
    words = np.ascontiguousarray(stored.reshape(-1, 4, stored.shape[-1]).transpose(0, 2, 1)).view("<u4")
    steps = words.shape[0]
    ordered = np.ascontiguousarray(words.reshape(steps, -1, r, groups).transpose(1, 3, 0, 2))
    data = ordered.view(np.uint8 if bits < 8 else np.int8).reshape(-1, groups, steps, r, 4)
    return {"data": data, "scales": np.ascontiguousarray(scales.reshape(-1, r, groups).transpose(0, 2, 1))}


def _folded(codes: Array, bits: int) -> Array:
    """Unsigned codes (32, n) -> (bits * 4, n): low nibbles by twos, then what is above them by as many as fit."""
    halves = (codes & 15).reshape(4, 2, 4, -1)
    parts = [(halves[:, 0] | halves[:, 1] << 4).reshape(16, -1)]
    if bits > 4:
        upper = (codes >> 4).reshape(bits - 4, -1, 4, codes.shape[1])
        shifts = np.arange(upper.shape[1], dtype=np.uint8) * np.uint8(bits - 4)
        parts.append(np.bitwise_or.reduce(upper << shifts[:, None, None], axis=1).reshape(-1, codes.shape[1]))
    return np.concatenate(parts)


def _unfolded(stored: Array, bits: int) -> Array:
    """Inverse of `_folded`, of (bits, 4, ...): (8, 4, ...)."""
    low = np.stack((stored[:4] & 15, stored[:4] >> 4), axis=1).reshape(8, *stored.shape[1:])
    if bits == 4:
        return low
    each = 8 // (bits - 4)
    shifts = np.arange(each, dtype=np.uint8).reshape(-1, *[1] * (stored.ndim - 1)) * np.uint8(bits - 4)
    upper = (stored[4:, None] >> shifts & np.uint8((1 << bits - 4) - 1)).reshape(low.shape)
    wide: Array = low | upper << 4
    return wide


def _untile_codes(data: Array, scales: Array, layout: Layout) -> tuple[Codes, Scales]:
    codes, bits = data.transpose(2, 4, 0, 3, 1), BITS[layout.format]  # (loads, 4, tiles, R, groups)
    if bits < 8:
        codes = _unfolded(codes, bits).astype(np.int8) - np.int8(1 << bits - 1)
    return codes.reshape(GROUP, -1), scales.transpose(0, 2, 1).reshape(-1)
