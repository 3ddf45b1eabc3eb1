"""Products with packed weights: every format and instruction set of this machine, shapes that fit no tile."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from llcompile.ir.packing import BITS, GROUP, layout_of, pad
from llcompile.lower.kernels.isa import isa_of
from llcompile.lower.kernels.linear import linear_float, linear_quantised
from llcompile.lower.kernels.quantise import quantise
from llcompile.lower.kernels.vector import Extent
from llcompile.quantize import pack, unpack
from llcompile.quantize.formats import code_range
from llrun.memory import aligned_copy
from tests.unit.lower.harness import Kernel, new_tokens, runnable

SHAPES = [(48, 96), (33, 70), (5, 32), (1, 7)]  # rows, columns
TOKENS = [1, 2, 3, 8, 17]
EPSILON = float(np.finfo(np.float32).eps)


def packed_weights(rows: int, columns: int, form: str, isa: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Weights as the kernels see them, and packed."""
    matrix = np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float32)
    layout = layout_of("linear", form, isa_of(isa).rows)
    parts = pack(matrix, layout, "w")
    return unpack(parts, layout, matrix.shape), {k: aligned_copy(v) for k, v in parts.items()}


def activations(n: int, columns: int) -> np.ndarray:
    rng = np.random.default_rng(n)
    x = rng.standard_normal((1, n, columns)) * np.geomspace(0.1, 10, columns)
    x[0, 0, :GROUP] = 0  # a group of zeros has no scale
    return aligned_copy(x.astype(np.float32))


@lru_cache
def _quantise(columns: int, decode: bool, isa: str) -> Kernel:
    return Kernel(quantise(1 if decode else new_tokens(), columns), isa)


def quantised_activations(x: np.ndarray, decode: bool, isa: str) -> list[np.ndarray]:
    _, n, columns = x.shape
    groups = pad(columns, GROUP) // GROUP
    out = [
        np.zeros((n, groups, GROUP), np.int8),
        np.zeros((n, groups), np.float32),
        np.zeros((n, groups), np.int32),
    ]
    _quantise(columns, decode, isa)(x, *out)
    return out


@pytest.mark.parametrize("isa", runnable())
@pytest.mark.parametrize("columns", [32, 96, 70])
def test_activations_are_rounded_to_the_nearest_step(columns: int, isa: str) -> None:
    for n, decode in [(1, True), (1, False), (5, False)]:
        x = activations(n, columns)
        q, scale, total = quantised_activations(x, decode, isa)
        wide = np.pad(x[0], ((0, 0), (0, -columns % GROUP))).reshape(n, -1, GROUP)
        np.testing.assert_allclose(scale, np.abs(wide).max(-1) / 127, rtol=2 * EPSILON)
        assert np.abs(q * scale[..., None] - wide).max() <= scale.max() * 0.5001
        np.testing.assert_array_equal(np.abs(q).max(-1), np.where(scale > 0, 127, 0))
        np.testing.assert_array_equal(total, q.sum(-1, dtype=np.int32))


@pytest.mark.parametrize("isa", runnable())
@pytest.mark.parametrize("form", ["f32", "f16"])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_float_products_have_full_accuracy(rows: int, columns: int, form: str, isa: str) -> None:
    weights, parts = packed_weights(rows, columns, form, isa)
    dtype = str(parts["data"].dtype)
    decode = Kernel(linear_float(isa_of(isa), dtype, 1, columns, rows), isa)
    prefill = Kernel(linear_float(isa_of(isa), dtype, new_tokens(), columns, rows), isa)
    for n, kernel in [(1, decode), *((n, prefill) for n in TOKENS)]:
        x, out = activations(n, columns), np.full((1, n, rows), np.nan, np.float32)
        kernel(x, parts["data"], out)
        exact = x.astype(np.float64) @ weights.T.astype(np.float64)
        bound = np.abs(x.astype(np.float64)) @ np.abs(weights.T.astype(np.float64)) * EPSILON * columns**0.5
        assert (np.abs(out - exact) <= bound).all()


@pytest.mark.parametrize("isa", runnable())
@pytest.mark.parametrize("form", list(BITS))
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_quantised_products_are_exact_in_their_groups(rows: int, columns: int, form: str, isa: str) -> None:
    weights, parts = packed_weights(rows, columns, form, isa)
    bits = BITS[form]
    decode = Kernel(linear_quantised(isa_of(isa), bits, 1, columns, rows), isa)
    prefill = Kernel(linear_quantised(isa_of(isa), bits, new_tokens(), columns, rows), isa)
    for n, kernel in [(1, decode), *((n, prefill) for n in TOKENS)]:
        x, out = activations(n, columns), np.full((1, n, rows), np.nan, np.float32)
        q, scale, total = quantised_activations(x, n == 1, isa)
        kernel(q, scale, total, parts["data"], parts["scales"], out)
        rounded = (q.astype(np.float64) * scale[..., None]).reshape(n, -1)[:, :columns]
        exact = rounded @ weights.T.astype(np.float64)
        bound = np.abs(rounded) @ np.abs(weights.T.astype(np.float64)) * EPSILON * 4
        assert (np.abs(out[0] - exact) <= bound + 1e-30).all()
        step = np.repeat(scale, GROUP, axis=1)[:, :columns]  # the rounding of activations: half a step each
        rounding = 0.5001 * step @ np.abs(weights.T.astype(np.float64))
        assert (np.abs(out[0] - x[0].astype(np.float64) @ weights.T) <= rounding + bound + 1e-6).all()


@pytest.mark.parametrize("isa", runnable())
@pytest.mark.parametrize("form", ["f32", "f16", "q8", "q6", "q5", "q4"])
@pytest.mark.parametrize(("rows", "columns"), [(64, 96), (33, 70)])
def test_a_token_is_the_same_alone_and_in_a_block_of_any_size(
    rows: int, columns: int, form: str, isa: str
) -> None:
    _, parts = packed_weights(rows, columns, form, isa)
    x = activations(19, columns)

    def kernel(length: Extent) -> Kernel:
        if form in BITS:
            return Kernel(linear_quantised(isa_of(isa), BITS[form], length, columns, rows), isa)
        return Kernel(linear_float(isa_of(isa), str(parts["data"].dtype), length, columns, rows), isa)

    decode, prefill = kernel(1), kernel(new_tokens())

    def product(start: int, stop: int, run: Kernel) -> np.ndarray:
        some, out = aligned_copy(x[:, start:stop]), np.full((1, stop - start, rows), np.nan, np.float32)
        given = quantised_activations(some, run is decode, isa) if form in BITS else [some]
        run(*given, *parts.values(), out)
        return out

    alone = np.concatenate([product(i, i + 1, decode) for i in range(19)], axis=1)
    for n in (1, 2, 3, 4, 5, 7, 8, 13, 16, 19):
        np.testing.assert_array_equal(product(0, n, prefill), alone[:, :n])
        np.testing.assert_array_equal(product(19 - n, 19, prefill), alone[:, 19 - n :])


@pytest.mark.parametrize("isa", runnable())
@pytest.mark.parametrize("bits", list(BITS.values()))
def test_the_largest_products_do_not_overflow(bits: int, isa: str) -> None:
    """All weights and activations at the ends of their ranges, in every combination of signs."""
    kernel = Kernel(linear_quantised(isa_of(isa), bits, new_tokens(), GROUP, 16), isa)
    low, high = code_range(bits)
    codes = np.where(np.arange(16)[:, None] % 2 == 0, low, high) * np.ones((16, GROUP), int)
    codes[8:, ::2] = low + high - codes[8:, ::2]  # rows of alternating ends
    layout = layout_of("linear", f"q{bits}", isa_of(isa).rows)
    parts = pack(codes.astype(np.float32), layout, "w")
    seen = unpack(parts, layout, codes.shape).astype(np.float64)
    q = np.stack(
        [np.full(GROUP, 127), np.full(GROUP, -127), np.tile([127, -127], 16), np.tile([-127, 127], 16)]
    )
    q = q.astype(np.int8)[:, None]
    out = np.zeros((1, 4, 16), np.float32)
    kernel(q, np.ones((4, 1), np.float32), q.sum(-1, dtype=np.int32), parts["data"], parts["scales"], out)
    np.testing.assert_allclose(out[0], q[:, 0].astype(np.float64) @ seen.T, rtol=1e-6)
