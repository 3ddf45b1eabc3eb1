"""Packing matrices into the layouts of ir/packing.py, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llcompile.ir.errors import CompileError
from llcompile.ir.packing import GROUP, Layout, pad
from llcompile.quantize.feedback import SPAN, Factors, quantise_with_feedback
from llcompile.quantize.formats import Codes, Floats, Scales, dequantise, quantise

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
    file. `name` is for the message. `factors`, which q4 alone heeds: round with error feedback. `columns`:
    the ranges of input features to store, of tiled quantised matrices at multiples of 32 but for K; what is stored is
    what it would be in the whole. Raises CompileError Q104 for weights that are not finite, Q105 for those that the
    format cannot hold.
    """
    if columns is not None:
        if factors is None or layout.format != "q4":
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
    if layout.format == "q4" and factors is not None:
        codes, scales = quantise_with_feedback(wide.reshape(-1, width), factors)
    else:
        codes, scales = quantise(wide.reshape(-1, GROUP).T, 4 if layout.format == "q4" else 8)
    if not np.isfinite(scales).all():
        raise unfit(matrix, layout.format, name)
    if layout.kind == "rows":
        return {
            "data": np.ascontiguousarray(codes.T).reshape(-1, width),
            "scales": scales.reshape(-1, width // GROUP),
        }
    return _tile_codes(codes, scales, layout, width // GROUP)


def _pack_columns(
    matrix: Floats, layout: Layout, name: str, factors: Factors, start: int, stop: int
) -> dict[str, Array]:
    """Features start..stop-1 of a tiled q4 matrix, rounded as in the whole: errors stay within a span."""
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
    limit = 65504.0 * {"f16": 1, "q8": 127, "q4": 8}[format]
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
    """Codes (32, tiles * R * groups) -> (tiles, groups, steps, R, 4), moved as words of 4 bytes."""
    r = layout.tile_rows
    stored: Array = codes.view(np.uint8)
    if layout.format == "q4":
        halves = (stored + np.uint8(8)).reshape(4, 2, 4, -1)
        stored = halves[:, 0] | halves[:, 1] << 4
    words = np.ascontiguousarray(stored.reshape(-1, 4, stored.shape[-1]).transpose(0, 2, 1)).view("<u4")
    steps = words.shape[0]
    ordered = np.ascontiguousarray(words.reshape(steps, -1, r, groups).transpose(1, 3, 0, 2))
    data = ordered.view(np.uint8 if layout.format == "q4" else np.int8).reshape(-1, groups, steps, r, 4)
    return {"data": data, "scales": np.ascontiguousarray(scales.reshape(-1, r, groups).transpose(0, 2, 1))}


def _untile_codes(data: Array, scales: Array, layout: Layout) -> tuple[Codes, Scales]:
    steps = data.transpose(2, 4, 0, 3, 1)  # (steps, 4, tiles, R, groups)
    if layout.format == "q4":
        halves = np.stack((steps & 15, steps >> 4), axis=1).astype(np.int8) - np.int8(8)
        steps = halves
    return steps.reshape(GROUP, -1), scales.transpose(0, 2, 1).reshape(-1)
