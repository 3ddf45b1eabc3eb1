"""The quantised formats: groups of 32 weights along the input dimension, one float16 scale a group.

Arrays here are (32, groups): a group is a column, so that each step over groups runs along contiguous memory.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Scales = npt.NDArray[np.float16]
Codes = npt.NDArray[np.int8]

# Groups worked on at a time: three float32 arrays of them stay within a megabyte of cache.
_PIECE = 2048
# Below this a group's scale is 0 in float16 whatever the format; also keeps 1 / magnitude finite.
_TINY = np.float32(2.0**-30)
# The largest magnitude is put so far beyond the negative end of the range: further lets the largest weight be cut.
_CANDIDATES = (0.0, -1.0, -0.5, 0.5, 1.0)


def quantise(groups: Floats, bits: int) -> tuple[Codes, Scales]:
    """Quantise `groups` (32, G) to 8, 6, 5 or 4 bits: codes int8 (32, G), scales float16 (G,).

    Weight = scale * code; codes are those of `code_range`. A group with a value that is not finite, or too large for a
    float16 scale, gets a scale that is not finite: the caller checks. A group of zeros gets scale 0 and codes 0.
    """
    codes = np.empty(groups.shape, np.int8)
    scales = np.empty(groups.shape[1], np.float16)
    choose = _scale_q8 if bits == 8 else partial(searched_scale, bits=bits)
    low, high = code_range(bits)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, groups.shape[1], _PIECE):
            part = slice(start, start + _PIECE)
            piece = np.ascontiguousarray(groups[:, part])
            scales[part] = choose(piece)
            work = np.multiply(piece, reciprocal(scales[part].astype(np.float32)))
            np.clip(np.rint(work, out=work), low, high, out=work)
            codes[:, part] = work
    return codes, scales


def code_range(bits: int) -> tuple[int, int]:
    """The lowest code and the highest: both ends of 8 bits alike."""
    return (-127, 127) if bits == 8 else (-(1 << bits - 1), (1 << bits - 1) - 1)


def dequantise(codes: Codes, scales: Scales) -> Floats:
    """Inverse of `quantise`: float32 (32, G)."""
    return np.multiply(codes, scales.astype(np.float32), dtype=np.float32)


def reciprocal(values: Floats) -> Floats:
    """1 / values, and 0 where a value is about zero."""
    return np.divide(1, values, out=np.zeros_like(values), where=np.abs(values) > _TINY)


def _scale_q8(groups: Floats) -> Scales:
    """Largest magnitude / 127; a subnormal, hence coarse, scale that would cut the largest is stepped up."""
    largest = np.maximum(groups.max(0), -groups.min(0))
    scales: Scales = (largest / np.float32(127)).astype(np.float16)
    cut = scales.astype(np.float32) * np.float32(127.5) < largest
    return np.where(cut, np.nextafter(scales, np.float16(np.inf)), scales)


def searched_scale(groups: Floats, importance: Floats | None = None, *, bits: int) -> Scales:
    """The scale of least squared error among a few candidates, each refined by least squares: of (32, ...) groups, for
    codes of `bits` bits, fewer than 8.

    For codes q of weights w the best scale is <w,q> / <q,q>, and leaves the error <w,w> - <w,q>^2 / <q,q>; so
    the candidate with the largest <w,q>^2 / <q,q> wins. `importance`, which broadcasts to `groups`: the squares'
    weights in these products (None: 1). The signed largest magnitude goes to the negative end, which reaches one step
    further than the positive one. Products and sums are kept apart and in rows' order: fused or reordered ones would
    make the bytes depend on the processor.
    """
    top, bottom = groups.max(0), groups.min(0)
    largest = np.where(top > -bottom, top, bottom)
    inverse = reciprocal(largest)
    scales, best = np.zeros_like(largest), np.full_like(largest, -1)
    codes, products = np.empty_like(groups), np.empty_like(groups)
    weighted = groups if importance is None else groups * importance
    low, high = code_range(bits)
    for candidate in _CANDIDATES:
        np.multiply(groups, inverse * np.float32(low - candidate), out=codes)
        np.clip(np.rint(codes, out=codes), low, high, out=codes)
        dot = np.multiply(weighted, codes, out=products).sum(0)
        np.square(codes, out=products)
        norm = (products if importance is None else np.multiply(products, importance, out=products)).sum(0)
        scale = dot * reciprocal(norm)
        gain = dot * scale
        better = gain > best
        scales, best = np.where(better, scale, scales), np.where(better, gain, best)
    # A value that is not finite must not vanish in a comparison.
    chosen: Scales = np.where(np.isfinite(largest), scales, largest).astype(np.float16)
    return chosen
