"""Layouts: what is stored where, by the words of ir/packing.py, and back again."""

from __future__ import annotations

import numpy as np
import pytest

from llcompile.ir.packing import BITS, GROUP, Layout, packed_params, pad
from llcompile.quantize import pack, unpack
from llcompile.quantize.formats import code_range
from llrun.schema import WeightFormat
from tests.unit.quantize.checkpoint import matrix

SHAPES = [(16, 32), (48, 64), (37, 45), (1, 1), (5, 100), (17, 33), (130, 2080)]
QUANTISED = [
    Layout("tiled", "q8", 16),
    Layout("tiled", "q6", 16),
    Layout("tiled", "q5", 16),
    Layout("tiled", "q4", 16),
    Layout("tiled", "q4", 5),
    Layout("rows", "q8"),
]
# Root of the mean squared error of standard normal weights; measured 0.00534 and 0.0811, plain largest/8:
# 0.0858.
RMS_BOUND = {"q8": 0.0056, "q6": 0.0205, "q5": 0.0405, "q4": 0.0825}


def layouts() -> list[Layout]:
    tiled = [Layout("tiled", f, r) for f in WeightFormat for r in (1, 5, 16)]
    return [*tiled, *(Layout("rows", f) for f in ("f32", "f16", "q8"))]


@pytest.mark.parametrize("layout", layouts(), ids=lambda x: f"{x.kind}-{x.format}-{x.tile_rows}")
@pytest.mark.parametrize("shape", SHAPES)
def test_stored_arrays_are_those_that_packing_says(layout: Layout, shape: tuple[int, int]) -> None:
    parts = pack(matrix(*shape), layout, "w")
    params = packed_params(0, "w", shape, layout)
    assert set(parts) == {p.part for p in params}
    for param in params:
        assert (parts[param.part].dtype, parts[param.part].shape) == (np.dtype(param.dtype), param.shape)
        assert parts[param.part].flags.c_contiguous


@pytest.mark.parametrize("layout", layouts(), ids=lambda x: f"{x.kind}-{x.format}-{x.tile_rows}")
@pytest.mark.parametrize("shape", SHAPES)
def test_unpack_gives_the_matrix_back(layout: Layout, shape: tuple[int, int]) -> None:
    given = matrix(*shape)
    got = unpack(pack(given, layout, "w"), layout, shape)
    assert got.shape == shape
    if layout.format == "f32":
        assert np.array_equal(got, given)
    elif layout.format == "f16":
        assert np.array_equal(got, given.astype(np.float16).astype(np.float32))
    else:
        # No weight is further off than half a step of the coarsest scale that its group may get.
        steps = {"q8": 127, "q6": 31, "q5": 15, "q4": 7}[layout.format]
        assert np.abs(got - given).max() <= 0.8 * np.abs(given).max() / steps


def test_plain_keeps_any_shape() -> None:
    given = matrix(3, 8).reshape(3, 2, 4)
    parts = pack(given, Layout("plain", "f32"), "w")
    assert parts["data"].dtype == np.float32
    assert np.array_equal(unpack(parts, Layout("plain", "f32"), given.shape), given)


@pytest.mark.parametrize("format", ["f32", "f16"])
def test_float_tiles_hold_consecutive_rows_for_each_feature(format: str) -> None:
    given = matrix(6, 5)
    data = pack(given, Layout("tiled", format, 4), "w")["data"]
    for n in range(8):
        for k in range(5):
            expected = given[n, k] if n < 6 else 0
            assert data[n // 4, k, n % 4] == np.asarray(expected, data.dtype)


def test_q8_tiles_hold_what_packing_says_element_by_element() -> None:
    rows, columns, r = 6, 40, 4
    given = matrix(rows, columns)
    parts = pack(given, Layout("tiled", "q8", r), "w")
    for n in range(8):
        for k in range(64):
            code = parts["data"][n // r, k // GROUP, k % GROUP // 4, n % r, k % 4]
            scale = np.float32(parts["scales"][n // r, k // GROUP, n % r])
            value = given[n, k] if n < rows and k < columns else 0.0
            assert abs(scale * code - value) <= 0.51 * scale


def test_q4_tiles_hold_what_packing_says_element_by_element() -> None:
    rows, columns, r = 6, 40, 4
    given = matrix(rows, columns)
    parts = pack(given, Layout("tiled", "q4", r), "w")
    unpacked = unpack(parts, Layout("tiled", "q4", r), (rows, columns))
    for n in range(8):
        for k in range(64):
            feature = k % GROUP
            j, inner = feature // 8, feature % 8
            byte = int(parts["data"][n // r, k // GROUP, j, n % r, inner % 4])
            code = ((byte & 15) if inner < 4 else (byte >> 4)) - 8
            scale = np.float32(parts["scales"][n // r, k // GROUP, n % r])
            if n < rows and k < columns:
                assert unpacked[n, k] == scale * code
                assert abs(unpacked[n, k] - given[n, k]) <= 0.51 * abs(scale) or code in (-8, 7)
            else:
                assert scale * code == 0
                assert code == 0


@pytest.mark.parametrize("bits", [5, 6])
def test_tiles_of_5_and_6_bits_hold_what_packing_says_element_by_element(bits: int) -> None:
    rows, columns, r = 6, 40, 4
    parts = pack(matrix(rows, columns), Layout("tiled", f"q{bits}", r), "w")
    unpacked = unpack(parts, Layout("tiled", f"q{bits}", r), (rows, columns))
    for n in range(8):
        for k in range(64):
            feature, tile = k % GROUP, parts["data"][n // r, k // GROUP, :, n % r]
            byte = int(tile[feature // 8, feature % 4])
            low = (byte & 15) if feature % 8 < 4 else (byte >> 4)
            if bits == 5:
                high = int(tile[4, feature % 4]) >> feature // 4 & 1
            else:
                high = int(tile[4 + feature // 16, feature % 4]) >> 2 * (feature % 16 // 4) & 3
            code = (high << 4 | low) - (1 << bits - 1)
            scale = np.float32(parts["scales"][n // r, k // GROUP, n % r])
            assert scale * code == (unpacked[n, k] if n < rows and k < columns else 0)


@pytest.mark.parametrize("layout", QUANTISED, ids=lambda x: f"{x.kind}-{x.format}-{x.tile_rows}")
def test_error_of_normal_weights_stays_within_the_stated_bound(layout: Layout) -> None:
    given = matrix(256, 1024)
    error = unpack(pack(given, layout, "w"), layout, given.shape) - given
    assert np.sqrt(np.square(error).mean()) < RMS_BOUND[layout.format]


def test_the_search_is_never_worse_than_the_largest_magnitude_alone() -> None:
    given = matrix(64, 512, seed=3) * np.exp(matrix(64, 512, seed=4))  # long tails, as real weights have
    layout = Layout("tiled", "q4", 16)
    groups = given.reshape(-1, GROUP)
    signed = np.take_along_axis(groups, np.abs(groups).argmax(1)[:, None], 1)
    scale = (signed / -8).astype(np.float16).astype(np.float32)
    simple = np.clip(np.rint(groups / scale), -8, 7) * scale
    chosen = unpack(pack(given, layout, "w"), layout, given.shape).reshape(-1, GROUP)
    simple_error = np.square(simple - groups).sum(1)
    chosen_error = np.square(chosen - groups).sum(1)
    assert (chosen_error <= simple_error * 1.01 + 1e-9).all()
    assert chosen_error.sum() < 0.96 * simple_error.sum()


@pytest.mark.parametrize("layout", QUANTISED, ids=lambda x: f"{x.kind}-{x.format}-{x.tile_rows}")
def test_groups_of_zeros_and_of_one_value(layout: Layout) -> None:
    given = np.zeros((32, 96), np.float32)
    given[3, 5] = 0.75
    given[4, 64:] = -1.5
    parts = pack(given, layout, "w")
    got = unpack(parts, layout, given.shape)
    assert np.isfinite(parts["scales"].astype(np.float32)).all()
    assert np.allclose(got, given, atol=2e-3)
    assert not got[0].any()


@pytest.mark.parametrize("layout", QUANTISED, ids=lambda x: f"{x.kind}-{x.format}-{x.tile_rows}")
@pytest.mark.parametrize("size", [1e-3, 1e-5, 1e-6])
def test_small_weights_meet_subnormal_scales_without_being_cut(layout: Layout, size: float) -> None:
    given = matrix(32, 64) * np.float32(size)
    got = unpack(pack(given, layout, "w"), layout, given.shape)
    largest, finest = np.abs(given).max(), 2.0**-24  # the smallest float16 above 0
    # 8 bits: half a step of a scale that float16 may have rounded up by `finest`. Fewer: the search may cut the
    # largest by a step, and float16 may round the scale either way by half of `finest`.
    low, high = code_range(BITS[layout.format])
    bound = 0.51 * (largest / 127 + finest) if high == 127 else largest / high + 0.5 * (1 - low) * finest
    assert np.abs(got - given).max() <= bound


def test_codes_use_their_range_and_no_more() -> None:
    parts = pack(matrix(64, 256), Layout("tiled", "q8", 16), "w")
    assert (parts["data"].min(), parts["data"].max()) == (-127, 127)


@pytest.mark.parametrize("columns", [31, 33, 63])
def test_padding_to_whole_groups_is_zero(columns: int) -> None:
    parts = pack(matrix(3, columns), Layout("rows", "q8"), "w")
    assert parts["data"].shape == (3, pad(columns, GROUP))
    assert not parts["data"][:, columns:].any()
