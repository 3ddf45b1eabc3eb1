"""Rounding to few bits with error feedback: each column's error is made up for by the columns behind it.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", arXiv
2210.17323, with the second moments of a layer's input kept for SPAN columns at a time: columns of different spans
don't hear of each other, so that all spans of a matrix are rounded at once and a layer's factors stay small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llcompile.ir.packing import GROUP, pad
from llcompile.quantize.formats import Codes, Floats, Scales, code_range, reciprocal, searched_scale

# Input features whose errors are spread together.
SPAN = 128
# Rows worked on together: a product of so many is too small for the BLAS library to split over threads.
ROWS = 64
# Of a product's factors: 16 products of two, summed, stay within the 24 bits of a float32.
_SPREAD_BITS, _ERROR_BITS = 9, 11
_LEAST_EXPONENT = -120
# Lanes (spans times rows) worked on at a time: fewer lose to calls, more to memory.
_LANES = 8192
_HALF = GROUP // 2
_LINE = 16  # float32 in a cache line


@dataclass(frozen=True)
class Factors:
    """What rounding needs of a matrix's input, K features in S = ceil(K / 128) spans.

    `spread` (S, 128, 128) float32, unit upper triangular: rounding column j with error e, column k > j is lessened by
    spread[j, k] * e. It is the upper Cholesky factor of the inverse of the damped second moments, its rows divided by
    their diagonal. `importance` (S, 128) float32: the damped second moments' diagonal. Features past K: identity.
    """

    spread: Floats
    importance: Floats


def quantise_with_feedback(matrix: Floats, factors: Factors, bits: int) -> tuple[Codes, Scales]:
    """Quantise `matrix` (rows, K), K a multiple of 32, to `bits` bits, fewer than 8, by `factors`: codes int8 (32, G),
    scales float16 (G,).

    Groups in the order of `formats.quantise` on matrix.reshape(-1, 32).T, which also says what codes and scales mean;
    a row depends on no other row. A weight that is not finite makes its group's scale, or that of a group behind it
    in the span, not finite.
    """
    rows, columns = matrix.shape
    spans, padded = len(factors.spread), pad(rows, ROWS)
    codes = np.zeros((SPAN, spans, padded), np.int8)
    scales = np.zeros((SPAN // GROUP, spans, padded), np.float16)
    step_rows = max(ROWS, _LANES // spans // ROWS * ROWS)
    step_spans = max(1, _LANES // step_rows)
    with np.errstate(over="ignore", invalid="ignore"):
        for row in range(0, rows, step_rows):
            for span in range(0, spans, step_spans):
                part = slice(span, span + step_spans), slice(row, row + step_rows)
                piece = _columns_first(matrix[part[1], span * SPAN : (span + step_spans) * SPAN])
                mine = Factors(factors.spread[part[0]], factors.importance[part[0]])
                codes[:, *part], scales[:, *part] = _round(piece, mine, bits)
    groups = columns // GROUP
    ordered = codes.reshape(-1, GROUP, spans, padded).transpose(1, 3, 2, 0)[:, :rows]
    ordered = ordered.reshape(GROUP, rows, -1)[:, :, :groups].reshape(GROUP, -1)
    by_row = scales.transpose(2, 1, 0)[:rows].reshape(rows, -1)[:, :groups]
    return ordered, by_row.reshape(-1)


def _columns_first(piece: Floats) -> Floats:
    """(rows, K) -> (128, spans, rows), rows and columns filled up with zeros."""
    rows, columns = piece.shape
    spans = pad(columns, SPAN) // SPAN
    if columns < spans * SPAN:
        piece = np.pad(piece, ((0, 0), (0, spans * SPAN - columns)))
    out = np.zeros((SPAN, spans, pad(rows, ROWS)), np.float32)
    # Whole cache lines of the result: a third of the time of the plain copy.
    for start in range(0, rows, _LINE):
        slab = piece[start : start + _LINE]
        out[:, :, start : start + len(slab)] = slab.reshape(-1, spans, SPAN).transpose(2, 1, 0)
    return out


def _round(weights: Floats, factors: Factors, bits: int) -> tuple[Codes, Scales]:
    """Codes (128, spans, rows) and scales (4, spans, rows) of `weights` (128, spans, rows), which are used up.

    A group's scale is chosen for its weights as the errors of the groups before it have left them. Errors travel by
    single columns within a half group, and from there on in products.
    """
    codes = np.empty(weights.shape, np.int8)
    scales = np.empty((SPAN // GROUP, *weights.shape[1:]), np.float16)
    importance = factors.importance.T[:, :, None]
    for start in range(0, SPAN, _HALF):
        inside, group = slice(start, start + _HALF), start // GROUP
        if start % GROUP == 0:
            whole = slice(start, start + GROUP)
            scales[group] = searched_scale(weights[whole], importance[whole], bits=bits)
        spread = factors.spread[:, inside, inside].transpose(1, 2, 0)[:, :, :, None]
        scale, ends = scales[group].astype(np.float32), code_range(bits)
        errors = _round_half(weights[inside], scale, spread, codes[inside], ends)
        if start + _HALF < SPAN:
            behind = slice(start + _HALF, SPAN)
            weights[behind] -= _carried(errors, factors.spread[:, inside, behind])
    return codes, scales


def _round_half(
    weights: Floats, scale: Floats, spread: Floats, codes: Codes, ends: tuple[int, int]
) -> Floats:
    """Fill `codes` (16, spans, rows), one column after another; returns each column's error, same shape."""
    inverse = reciprocal(scale)
    errors, change = np.empty_like(weights), np.empty_like(weights)
    for j in range(_HALF):
        code = np.multiply(weights[j], inverse, out=errors[j])
        np.clip(np.rint(code, out=code), *ends, out=code)
        codes[j] = code
        np.subtract(weights[j], np.multiply(code, scale, out=code), out=code)
        weights[j + 1 :] -= np.multiply(spread[j, j + 1 :], errors[j], out=change[j + 1 :])
    return errors


def _carried(errors: Floats, spread: Floats) -> Floats:
    """What `errors` (16, spans, rows) take from the columns behind by `spread` (spans, 16, n): (n, spans, rows).

    Both are put on grids on which nothing of a product is rounded: the BLAS library sums in an order that depends on
    where a row stands, and on the processor.
    """
    spans, tiles = errors.shape[1], errors.shape[2] // ROWS
    coarse = _on_grid(errors, 0, _ERROR_BITS)
    tiled = coarse.reshape(_HALF, spans, tiles, ROWS).transpose(1, 2, 0, 3)
    change = np.ascontiguousarray(_on_grid(spread, 1, _SPREAD_BITS).transpose(0, 2, 1))[:, None] @ tiled
    return change.transpose(2, 0, 1, 3).reshape(-1, spans, errors.shape[2])


def _on_grid(values: Floats, axis: int, bits: int) -> Floats:
    """`values`, rounded to multiples of a power of two of which the largest along `axis` has at most 2 ** bits."""
    largest = np.maximum(values.max(axis, keepdims=True), -values.min(axis, keepdims=True))
    step = np.ldexp(np.float32(1), np.maximum(np.frexp(largest)[1] - bits, _LEAST_EXPONENT))
    rounded: Floats = np.rint(values * (1 / step)) * step
    return rounded
