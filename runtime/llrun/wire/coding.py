"""Rows of activations to the bytes that travel, and back (llrun.programs.formats has the layout).

The same bits on every machine: products and quotients of float32, each rounded once, and integers; no sum.
Decoded rows are coded to the same bytes again, so what was received may be sent on. Rows are taken a few at a time, so
that what is in between stays in a processor's cache, and small.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llrun.errors import INTERNAL, RunError
from llrun.memory import Array, empty
from llrun.programs.formats import EXPONENT_BYTES, HALF_BYTES, STEPS, Groups
from llrun.programs.layouts import Layout
from llrun.schema import WireFormat

Floats = NDArray[np.float32]
Halves = NDArray[np.float16]
Bytes = NDArray[np.uint8]
PIECE_FEATURES = 1 << 14  # coded at once
TOP = 16  # a row's largest feature is brought below 2^TOP
LARGEST = np.float32(65504)  # of float16
LEAST_EXPONENT = -100  # 2^100 is a float32; a row that would need more is as good as zero
ONE = np.float32(1)


def encode(layout: Layout, array: Array) -> Bytes:
    """The rows of `array`, a tensor of `layout` that is `coded`, as they travel: (rows, layout.wire_bytes).

    Raises RunError R502, naming the tensor, for what is not a finite number: no other format than float32 would carry
    it as what it is.
    """
    count = array.shape[layout.axis]
    rows: Floats = np.ascontiguousarray(array, np.float32).reshape(count, -1)
    coded = np.empty((count, layout.wire_bytes), np.uint8)
    for piece in _pieces(*rows.shape):
        if layout.wire == WireFormat.F16:
            largest = np.abs(rows[piece]).max(axis=1)
            scaled = rows[piece] * _shrunk(layout, largest, coded[piece])
            np.minimum(scaled, LARGEST, out=scaled)
            np.maximum(scaled, -LARGEST, out=scaled)
            coded[piece, EXPONENT_BYTES:].view(np.float16)[...] = scaled
        else:
            _encode_groups(layout, rows[piece], coded[piece])
    return coded


def decode(layout: Layout, coded: Bytes) -> Array:
    """The tensor whose rows are `coded`: (rows, layout.wire_bytes)."""
    array = empty(layout.dims(len(coded)), "float32")
    rows: Floats = array.reshape(len(coded), -1).view(np.float32)
    for piece in _pieces(*rows.shape):
        power: Floats = np.ldexp(ONE, coded[piece, :EXPONENT_BYTES].view(np.int16))
        if layout.wire == WireFormat.F16:
            np.multiply(coded[piece, EXPONENT_BYTES:].view(np.float16), power, out=rows[piece])
        else:
            rows[piece] = _ungrouped(layout.wire, coded[piece], power, rows.shape[1])
    return array


def receiving(layout: Layout, rows: int) -> Array:
    """Memory for rows of a tensor as they travel."""
    if layout.coded:
        return np.empty((rows, layout.wire_bytes), np.uint8)
    return empty(layout.dims(rows), layout.dtype)


def received(layout: Layout, array: Array) -> Array:
    """The tensor that came in `receiving`."""
    return decode(layout, array.view(np.uint8)) if layout.coded else array


def _pieces(rows: int, features: int) -> list[slice]:
    step = max(1, PIECE_FEATURES // features)
    return [slice(start, start + step) for start in range(0, rows, step)]


def _shrunk(layout: Layout, largest: Floats, coded: Bytes) -> Floats:
    """(rows, 1): what each row is to be multiplied with so that its `largest` feature comes into the highest range; its
    exponent is written."""
    if not np.isfinite(largest).all():
        value = largest[~np.isfinite(largest)][0]
        raise RunError(
            "R502", f"tensor {layout.name} holds {value}: the model's figures have overflowed", INTERNAL
        )
    exponents = np.maximum(np.frexp(largest)[1] - TOP, LEAST_EXPONENT)[:, None].astype(np.int16)
    coded[:, :EXPONENT_BYTES].view(np.int16)[...] = exponents
    shrunk: Floats = np.ldexp(ONE, -exponents)
    return shrunk


# --- groups: scale, the largest feature, and codes -------------------------------------------------------------------


def _encode_groups(layout: Layout, rows: Floats, coded: Bytes) -> None:
    count, groups = len(rows), Groups.of(rows.shape[1])
    values = _grouped(rows, groups)
    sizes = np.abs(values)
    first = np.arange(0, values.size, groups.size)
    places = sizes.argmax(axis=1)
    most = places + first
    shrunk = _shrunk(layout, sizes.reshape(-1)[most].reshape(count, -1).max(axis=1), coded)
    flat = values.reshape(-1)
    wide = (flat[most].reshape(count, -1) * shrunk).clip(-LARGEST, LARGEST).astype(np.float16).reshape(-1)
    sizes.reshape(-1)[most] = flat[most] = 0
    next_most = flat[sizes.argmax(axis=1) + first].reshape(count, -1) * shrunk
    steps = STEPS[layout.wire]
    scales = _scales(next_most.reshape(-1), wide, steps)
    # A group of zeros has the scale 0, and zero codes.
    units = np.where(scales == 0, ONE, scales.astype(np.float32)).reshape(count, -1) / shrunk
    codes = np.rint(values / units.reshape(-1, 1)).clip(-steps, steps - 1).astype(np.int8)
    parts = _parts(layout.wire, coded, groups)
    parts.scales[...] = scales.reshape(count, -1)
    parts.wide[...] = wide.reshape(count, -1)
    parts.places[...] = places.reshape(count, -1)
    parts.codes[...] = (codes.view(np.uint8) if steps == 128 else _nibbles(codes)).reshape(count, -1)


def _ungrouped(wire: WireFormat, coded: Bytes, power: Floats, features: int) -> Floats:
    """(rows, features): what `_encode_groups` wrote."""
    groups = Groups.of(features)
    parts = _parts(wire, coded, groups)
    codes = parts.codes.view(np.int8) if wire == WireFormat.Q8 else _unpacked(parts.codes, groups)
    values: Floats = codes.reshape(-1, groups.size) * (parts.scales * power).reshape(-1, 1)
    most = parts.places.reshape(-1) + np.arange(0, values.size, groups.size)
    values.reshape(-1)[most] = (parts.wide * power).reshape(-1)
    return values.reshape(len(coded), -1)[:, :features]


def _grouped(rows: Floats, groups: Groups) -> Floats:
    """A copy (rows x count, size), zeros behind the last feature."""
    if groups.padded == groups.features:
        return rows.reshape(-1, groups.size).copy()
    padded = np.zeros((len(rows), groups.padded), np.float32)
    padded[:, : groups.features] = rows
    return padded.reshape(-1, groups.size)


def _scales(following: Floats, wide: Halves, steps: int) -> Halves:
    """Scales whose lowest code is no larger than `following`, each group's next largest feature, and smaller than its
    largest as it travels: so decoded rows have the same largest features, and the same codes."""
    scales = (following * np.float32(-1 / steps)).astype(np.float16)
    lowest = np.abs(scales).astype(np.float32) * np.float32(steps)
    beyond = ((lowest > np.abs(following)) | (lowest >= np.abs(wide))) & (scales != 0)
    while beyond.any():
        scales.view(np.uint16)[...] -= beyond  # the next float16 towards zero
        lowest = np.abs(scales).astype(np.float32) * np.float32(steps)
        beyond = ((lowest > np.abs(following)) | (lowest >= np.abs(wide))) & (scales != 0)
    scales += np.float16(0)  # no negative zero
    return scales


def _nibbles(codes: NDArray[np.int8]) -> Bytes:
    half = codes.shape[1] // 2
    packed: Bytes = (codes[:, :half] & 15 | codes[:, half:] << 4).view(np.uint8)
    return packed


def _unpacked(packed: Bytes, groups: Groups) -> NDArray[np.int8]:
    both = packed.view(np.int8).reshape(-1, groups.size // 2)
    codes = np.empty((len(both), groups.size), np.int8)
    codes[:, : groups.size // 2] = both << 4 >> 4
    codes[:, groups.size // 2 :] = both >> 4
    return codes


class _Parts(NamedTuple):
    """Views of coded rows: (rows, groups) each, and the codes' bytes (rows, ...)."""

    scales: Halves
    wide: Halves
    places: Bytes
    codes: Bytes


def _parts(wire: WireFormat, coded: Bytes, groups: Groups) -> _Parts:
    halves = EXPONENT_BYTES + HALF_BYTES * groups.count, EXPONENT_BYTES + 2 * HALF_BYTES * groups.count
    return _Parts(
        coded[:, EXPONENT_BYTES : halves[0]].view(np.float16),
        coded[:, halves[0] : halves[1]].view(np.float16),
        coded[:, halves[1] : halves[1] + groups.count],
        coded[:, halves[1] + groups.count :],
    )
