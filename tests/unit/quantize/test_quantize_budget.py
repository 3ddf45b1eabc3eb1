"""Formats within a budget: against every choice that there is, and against its bound."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest

from llcompile.ir.packing import BITS, bits_of
from llcompile.quantize import LEAST_BITS, MOST_BITS, choose
from llcompile.quantize.measure import Measured


def sets(count: int, seed: int) -> list[Measured]:
    """Of any size and cost; each bit more makes the cost about a quarter."""
    rng = np.random.default_rng(seed)
    return [
        Measured(
            (f"{i}", f"{i}b"),
            int(rng.integers(1, 50)) * 1024,
            {format: float(10 ** rng.uniform(-4, -1) * 0.25 ** (bits - 4)) for format, bits in BITS.items()},
        )
        for i in range(count)
    ]


def best(given: list[Measured], bits: float) -> float:
    """The least divergence of all choices that fit."""
    limit = bits * sum(one.elements for one in given)
    fitting = (
        sum(one.divergence[format] for one, format in zip(given, formats, strict=True))
        for formats in product(BITS, repeat=len(given))
        if sum(bits_of(f) * one.elements for one, f in zip(given, formats, strict=True))
        <= limit * (1 + 1e-12)
    )
    return min(fitting)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bits", [4.5, 4.6, 4.8, 5.5, 6.3, 7.7, 8.5])
def test_the_choice_is_the_best_that_fits(seed: int, bits: float) -> None:
    given = sets(5, seed)
    found, least = choose(given, bits), best(given, bits)
    assert found.bound <= least * (1 + 1e-9)
    assert least <= found.divergence * (1 + 1e-9)
    assert found.divergence <= least * 1.001  # sizes are rounded up to steps of the budget
    assert found.bits <= bits + 1e-9
    sizes = {name: one.elements for one in given for name in one.names[:1]}
    used = sum(bits_of(found.formats[name]) * size for name, size in sizes.items()) / sum(sizes.values())
    assert found.bits == pytest.approx(used)
    assert sum(found.divergences.values()) == pytest.approx(found.divergence)


def test_the_ends_have_one_format() -> None:
    given = [Measured((f"{i}",), 1000 + i, {f: 0.1**bits for f, bits in BITS.items()}) for i in range(40)]
    assert set(choose(given, LEAST_BITS).formats.values()) == {"q4"}
    assert set(choose(given, MOST_BITS).formats.values()) == {"q8"}


def test_matrices_of_a_set_have_one_format() -> None:
    found = choose(sets(8, 1), 5.3).formats
    assert all(found[f"{i}"] == found[f"{i}b"] for i in range(8))
    assert len(set(found.values())) > 1


def test_more_bits_never_cost_more() -> None:
    costs = [choose(sets(12, 2), bits).divergence for bits in np.linspace(LEAST_BITS, MOST_BITS, 60)]
    assert all(more <= less * (1 + 1e-3) for less, more in pairwise(costs))
