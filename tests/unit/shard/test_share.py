"""Shares as whole units."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest

from llcompile.shard.parts import CannotCut, Part, union
from llcompile.shard.share import column_ranges, head_ranges, whole_units


@pytest.mark.parametrize(
    ("shares", "units", "expected"),
    [
        ((0.5, 0.5), 5, (3, 2)),
        ((0.1, 0.9), 30, (3, 27)),
        ((0.7, 0.2, 0.1), 7, (5, 1, 1)),
        ((0.98, 0.01, 0.01), 4, (2, 1, 1)),
        ((1 / 3, 1 / 3, 1 / 3), 8, (3, 3, 2)),
        ((0.01, 0.01, 0.98), 3, (1, 1, 1)),
    ],
)
def test_whole_units(shares: tuple[float, ...], units: int, expected: tuple[int, ...]) -> None:
    assert whole_units(shares, units) == expected


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_whole_units_are_near_their_shares(count: int) -> None:
    for seed in range(50):
        shares = np.random.default_rng(seed).dirichlet(np.full(count, 3.0)).tolist()
        given = whole_units(shares, 200)
        assert sum(given) == 200
        assert all(abs(g - share * 200) < 1 or g == 1 for g, share in zip(given, shares, strict=True))


def test_columns_are_cut_in_large_units_where_there_are_many() -> None:
    assert column_ranges((0.5, 0.5), 5632, 32) == ((0, 2816), (2816, 5632))
    assert column_ranges((0.3, 0.7), 512, 32) == ((0, 128), (128, 512))
    assert column_ranges((0.3, 0.7), 160, 1) == ((0, 48), (48, 160))
    assert column_ranges((0.5, 0.5), 100, 32) == ((0, 64), (64, 100))


def test_heads_are_cut_where_the_squares_are_least() -> None:
    """Every way of cutting 12 heads in groups of 4 for 5 devices, tried."""

    def allowed(start: int, stop: int) -> bool:
        return (start % 4 == stop % 4 == 0) or start // 4 == (stop - 1) // 4

    cuts = [(0, *inner, 12) for inner in combinations(range(1, 12), 4)]
    ways = [way for way in map(tuple, map(pairwise, cuts)) if all(allowed(*r) for r in way)]
    for seed in range(20):
        shares = np.random.default_rng(seed).dirichlet(np.full(5, 3.0)).tolist()
        errors = [sum((b - a - s * 12) ** 2 for (a, b), s in zip(way, shares, strict=True)) for way in ways]
        found = head_ranges(shares, 12, 4, 8, 1)
        assert found in ways
        assert errors[ways.index(found)] == pytest.approx(min(errors))


def test_whole_groups_where_there_are_enough() -> None:
    assert head_ranges((0.6, 0.4), 32, 4, 64, 32) == ((0, 20), (20, 32))
    assert head_ranges((0.5, 0.5), 6, 1, 80, 32) == (
        (0, 4),
        (4, 6),
    )  # a head's 80 features are no multiple of 32
    assert head_ranges((0.5, 0.5), 6, 3, 16, 32) == (
        (0, 3),
        (3, 6),
    )  # nor are three heads' 48, but there is no other way
    with pytest.raises(
        CannotCut, match="6 heads of 16 features, 3 to a key head, cannot be cut for 7 devices"
    ):
        head_ranges((1 / 7,) * 7, 6, 3, 16, 32)


def test_parts() -> None:
    whole = union([Part(2, ((8, 12), (0, 4))), Part(2, ((4, 6),))])
    assert whole == Part(2, ((0, 6), (8, 12)))
    assert whole.size == 10
    assert Part(2, ((9, 11),)).place_in(whole) == 7
    assert whole.within(5, 9) == Part(2, ((0, 1), (3, 4)))
    with pytest.raises(CannotCut):
        Part(2, ((0, 2), (9, 10))).place_in(whole)
