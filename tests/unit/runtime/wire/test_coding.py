"""Rows on the wire: how far from what was computed, how many bytes, and the same ones always."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from llrun.errors import RunError
from llrun.programs.formats import Groups, row_bytes
from llrun.programs.layouts import Layout, layout_of
from llrun.schema import Tensor, WireFormat
from llrun.wire.coding import decode, encode

CODED = [WireFormat.F16, WireFormat.Q8, WireFormat.Q4]
WIDTHS = [4, 6, 31, 64, 65, 100, 192, 576, 2048]
# The most of an error, relative to the next largest feature of its group: a step, as the highest code is not the
# lowest's opposite, and what rounding the scale down takes away.
STEP = {WireFormat.Q8: 1 / 128 + 1 / 1024, WireFormat.Q4: 1 / 8 + 1 / 1024}


def layout(wire: str, features: int) -> Layout:
    return layout_of(Tensor(id=0, name="h7", dtype="float32", shape=(1, -1, features), wire=WireFormat(wire)))


def rows(features: int, count: int = 5, seed: int = 0, wide: float = 1.0) -> np.ndarray:
    """Rows of which a few features are `wide` times as large as others, and which differ in size by 10^9."""
    random = np.random.default_rng([features, seed])
    made = random.standard_normal((1, count, features)).astype(np.float32)
    made[..., :: max(features // 2, 7)] *= np.float32(wide)
    return made * np.float32(10.0) ** random.integers(-4, 5, (1, count, 1)).astype(np.float32)


@pytest.mark.parametrize("wire", CODED)
@pytest.mark.parametrize("features", WIDTHS)
def test_rows_come_back_nearly_as_they_were(wire, features):
    form, given = layout(wire, features), rows(features, wide=300.0)
    coded = encode(form, given)
    assert (coded.shape, coded.dtype) == ((5, form.wire_bytes), np.uint8)
    found = decode(form, coded)
    assert (found.shape, found.dtype) == (given.shape, np.float32)
    error = np.abs(found - given)
    if wire == WireFormat.F16:
        assert (error <= np.abs(given) / 2048).all()
        return
    groups = Groups.of(features)
    spare = ((0, 0), (0, 0), (0, groups.padded - features))
    sizes = np.pad(np.abs(given), spare).reshape(-1, groups.size)
    errors = np.pad(error, spare).reshape(-1, groups.size)
    largest = sizes.argmax(axis=1)
    place = np.arange(len(sizes)), largest
    assert (errors[place] <= sizes[place] / 2048).all()
    errors[place] = sizes[place] = 0
    bound = sizes.max(axis=1) * STEP[wire]
    assert (errors.max(axis=1) <= bound).all()
    assert np.median(errors.max(axis=1) / np.where(bound, bound, 1)) < 0.8


@pytest.mark.parametrize("wire", CODED)
def test_a_row_has_the_same_bytes_alone_and_beside_others(wire):
    form, given = layout(wire, 192), rows(192, count=300)
    together = encode(form, given)
    for row in (0, 7, 84, 85, 86, 299):
        assert (encode(form, given[:, row : row + 1]) == together[row]).all()
        assert (decode(form, together[row : row + 1])[0, 0] == decode(form, together)[0, row]).all()


@pytest.mark.parametrize("wire", CODED)
@pytest.mark.parametrize("features", WIDTHS)
def test_what_was_received_has_the_same_bytes_when_it_is_sent_on(wire, features):
    form = layout(wire, features)
    for seed in range(20):
        given = rows(features, 4, seed, wide=[1.0, 30.0, 1e4][seed % 3])
        given = given.round(seed % 4) if seed % 2 else given  # ties
        once = decode(form, encode(form, given))
        twice = decode(form, encode(form, once))
        assert (once.view(np.int32) == twice.view(np.int32)).all()


@pytest.mark.parametrize(
    ("wire", "digest"),
    [("f16", "84f6dfd0c5236434"), ("q8", "9a3bebb20e19e842"), ("q4", "54708e16a81f4564")],
)
def test_the_bytes_are_the_same_on_every_machine(wire, digest):
    numbers = np.arange(3 * 200, dtype=np.uint32) * np.uint32(2654435761) >> np.uint32(8)
    given = (numbers.astype(np.float32) - np.float32(1 << 23)).reshape(1, 3, 200) / np.float32(7)
    assert hashlib.sha256(encode(layout(wire, 200), given).tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("wire", CODED)
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38, 1e-7, 65519.9, 65520.0, 1e9, 3.4e38])
def test_no_finite_row_is_too_small_or_too_large(wire, size):
    form = layout(wire, 70)
    given = rows(70, wide=3.0)
    given = (given / np.abs(given).max(axis=2, keepdims=True) * np.float32(size)).astype(np.float32)
    found = decode(form, encode(form, given))
    assert np.isfinite(found).all()
    bound = size * {"f16": 0.001, "q8": 0.01, "q4": 0.14}[wire]
    assert np.abs(found - given).max() <= max(bound, 1e-37)


@pytest.mark.parametrize("wire", CODED)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (3, 130), (4, 191)])
def test_what_is_no_number_does_not_become_one(wire, value, place):
    given = rows(192)
    given[0][place] = value
    with pytest.raises(RunError) as caught:
        encode(layout(wire, 192), given)
    assert caught.value.code == "R502"
    assert f"tensor h7 holds {abs(value)}" in caught.value.message


def test_a_group_with_one_huge_feature_keeps_its_others():
    given = rows(64, 1)
    given[0, 0, 17] = 1e4 * np.abs(given).max()
    for wire, bound in ((WireFormat.Q8, 0.01), (WireFormat.Q4, 0.13)):
        found = decode(layout(wire, 64), encode(layout(wire, 64), given))
        others = np.delete(given[0, 0], 17)
        assert np.abs(np.delete(found[0, 0], 17) - others).max() <= bound * np.abs(others).max()


def test_bytes_of_a_row():
    assert row_bytes(WireFormat.F32, 2048) == 8192
    assert row_bytes(WireFormat.F16, 2048) == 4098
    assert row_bytes(WireFormat.Q8, 2048) == 2 + 32 * 5 + 2048
    assert row_bytes(WireFormat.Q4, 2048) == 2 + 32 * 5 + 1024
    assert row_bytes(WireFormat.Q4, 65) == 2 + 2 * 5 + 2 * 34 // 2
    for features in WIDTHS[2:]:
        sizes = [row_bytes(wire, features) for wire in (WireFormat.F32, *CODED)]
        assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("dtype", "shape"), [("int64", (1, -1, 64)), ("float32", (2, -1, 64)), ("float32", (1, -1, 3))]
)
def test_what_cannot_be_coded_is_refused(dtype, shape):
    with pytest.raises(RunError, match="tensor h7 is to travel as q8"):
        layout_of(Tensor(id=0, name="h7", dtype=dtype, shape=shape, wire=WireFormat.Q8))
