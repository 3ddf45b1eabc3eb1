"""Kernels for Arm, under qemu on a processor that has no more than the instruction set: the tests of this machine's
kernels, that blocks of tokens change no bit, and that the bits are those of AVX2's kernels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from llcompile.ir.packing import BITS
from llcompile.lower.kernels.isa import isa_of
from llcompile.lower.kernels.linear import linear_quantised
from llcompile.lower.kernels.vector import Extent
from tests import arm
from tests.unit.lower import test_lower_attention as attention
from tests.unit.lower import test_lower_linear as linear
from tests.unit.lower import test_lower_processors as processors
from tests.unit.lower.emulated import CPUS
from tests.unit.lower.harness import Kernel, new_tokens, runnable

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(arm.missing() is not None, reason=f"no Arm code here: {arm.missing()}"),
    pytest.mark.parametrize("isa", list(CPUS)),
]
SHAPES = [(33, 70), (5, 32), (1, 7)]


def test_activations_are_rounded_to_the_nearest_step(isa: str) -> None:
    linear.test_activations_are_rounded_to_the_nearest_step(70, isa)


@pytest.mark.parametrize("form", ["f32", "f16"])
def test_float_products_have_full_accuracy(form: str, isa: str) -> None:
    for rows, columns in SHAPES:
        linear.test_float_products_have_full_accuracy(rows, columns, form, isa)


@pytest.mark.parametrize("form", list(BITS))
def test_quantised_products_are_exact_in_their_groups(form: str, isa: str) -> None:
    for rows, columns in SHAPES:
        linear.test_quantised_products_are_exact_in_their_groups(rows, columns, form, isa)


@pytest.mark.parametrize("bits", list(BITS.values()))
def test_the_largest_products_do_not_overflow(bits: int, isa: str) -> None:
    linear.test_the_largest_products_do_not_overflow(bits, isa)


@pytest.mark.parametrize("bits", list(BITS.values()))
def test_a_token_is_the_same_alone_and_among_others(bits: int, isa: str) -> None:
    rows, columns, n = 24, 96, 17
    _, parts = linear.packed_weights(rows, columns, f"q{bits}", isa)
    x = linear.activations(n, columns)

    def product(length: Extent, start: int, stop: int) -> np.ndarray:
        kernel = Kernel(linear_quantised(isa_of(isa), bits, length, columns, rows), isa)
        out = np.full((1, stop - start, rows), np.nan, np.float32)
        some = np.ascontiguousarray(x[:, start:stop])
        kernel(*linear.quantised_activations(some, isinstance(length, int), isa), *parts.values(), out)
        return out

    together = product(new_tokens(), 0, n)
    for alone in (0, 3, 16):
        np.testing.assert_array_equal(product(1, alone, alone + 1), together[:, alone : alone + 1])
        np.testing.assert_array_equal(product(new_tokens(), alone, alone + 1), together[:, alone : alone + 1])


@pytest.mark.parametrize("name", attention.EVERYWHERE)
def test_attention(name: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if isa != "neon_dotprod" and name != "all":
        pytest.skip("attention differs between these sets in the order of instructions alone")
    long = [[1000, 1]] if (name, isa) == ("two share", "neon_dotprod") else []  # seconds, under qemu
    monkeypatch.setattr(attention, "CUTS", ([1] * 3, [31, 1, 1, 1, 17], [130, 3, 1], *long))
    attention.test_attention(name, isa)


@pytest.mark.skipif("avx2" not in runnable(), reason="this machine has no AVX2 to compare with")
@pytest.mark.parametrize("part", processors.PARTS)
def test_bits_are_those_of_avx2(part: Callable[[str], list[np.ndarray]], isa: str) -> None:
    if part is processors.PARTS[-1] and isa != "neon_dotprod":
        pytest.skip("attention differs between these sets in the order of instructions alone")
    processors.test_bits_are_those_of_avx2(part, isa)
