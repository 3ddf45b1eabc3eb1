"""Kernels give the same bits on every processor: a device of another kind may take over a block, and the text goes on
as it would have. test_lower_arm has the same of Arm's."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from llcompile.lower.kernels.isa import isa_of
from llcompile.lower.kernels.linear import linear_float, linear_quantised
from llcompile.lower.kernels.norm import NormSpec, norm
from tests.unit.lower import test_lower_attention as attention
from tests.unit.lower import test_lower_linear as linear
from tests.unit.lower.harness import Kernel, new_tokens, runnable


def _products(isa: str) -> list[np.ndarray]:
    """Activations in int8, and products in every format."""
    rows, columns, n = 33, 70, 17
    x, found = linear.activations(n, columns), []
    for form in ("f32", "f16", "q8", "q4"):
        _, parts = linear.packed_weights(rows, columns, form, isa)
        if form.startswith("f"):
            given = [x]
            made = linear_float(isa_of(isa), f"float{form[1:]}", new_tokens(), columns, rows)
        else:
            given = linear.quantised_activations(x, False, isa)
            made = linear_quantised(isa_of(isa), int(form[1:]), new_tokens(), columns, rows)
        out = np.zeros((1, n, rows), np.float32)
        Kernel(made, isa)(*given, *parts.values(), out)
        found += [*given, out]
    return found


def _norms(isa: str) -> list[np.ndarray]:
    rng, found = np.random.default_rng(0), []
    for width, centred in ((70, True), (96, False)):
        length = new_tokens()
        kernel = Kernel(norm(NormSpec(1e-5, centred, False), length, (1, length, width)), isa)
        x = (1 + 3 * rng.standard_normal((1, 9, width))).astype(np.float32)
        vectors = [rng.standard_normal(width).astype(np.float32) for _ in range(1 + centred)]
        found.append(np.zeros_like(x))
        kernel(x, *vectors, found[-1])
    return found


def _attention(isa: str) -> list[np.ndarray]:
    """Outputs and caches: an 8-bit cache, a window, a soft cap, ALiBi."""
    spec, start, found = attention.CASES["all"], 0, []
    prefill, single = (attention._kernel(spec, isa, function) for function in ("prefill", "decode"))
    caches = attention.Caches(spec, 2)
    for n in (130, 1, 40, 1):
        new, positions = attention._draw(start, spec, n), list(range(start, start + n))
        found.append((single if n == 1 else prefill)(caches, new, positions, [1]))
        start += n
    return [*found, *(array[1] for array in caches.arrays)]


PARTS = [_products, _norms, _attention]


@pytest.mark.skipif(not {"avx2", "avx512vnni"} <= {*runnable()}, reason="this machine has no AVX-512 VNNI")
@pytest.mark.parametrize("isa", ["avx512vnni"])
@pytest.mark.parametrize("part", PARTS)
def test_bits_are_those_of_avx2(part: Callable[[str], list[np.ndarray]], isa: str) -> None:
    for got, want in zip(part(isa), _with_avx2(part), strict=True):
        np.testing.assert_array_equal(got, want)


@cache
def _with_avx2(part: Callable[[str], list[np.ndarray]]) -> list[np.ndarray]:
    return part("avx2")
