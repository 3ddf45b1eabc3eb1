"""Shares of a group as whole units: heads, or columns, in ranges that follow each other in the order of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import floor

from llcompile.shard.parts import CannotCut

_COLUMNS = (64, 32, 16, 8, 4, 2, 1)
# Units of columns are as coarse as leaves so many a device: shares are then met within a few per cent.
_UNITS_A_DEVICE = 4
_DIGITS = 9  # a share is known to so many: 0.1 * 30 is 3

Range = tuple[int, int]


def whole_units(shares: Sequence[float], units: int) -> tuple[int, ...]:
    """`units` by `shares`, at least one each: whole parts first, then by the largest remainder, ties to lower ranks.

    Raises CannotCut where there are fewer units than shares.
    """
    if units < len(shares):
        raise CannotCut(f"{units} units are fewer than {len(shares)} devices")
    wanted = [round(share / sum(shares) * units, _DIGITS) for share in shares]
    given = [max(1, floor(amount)) for amount in wanted]
    while sum(given) != units:
        step = 1 if sum(given) < units else -1
        able = [rank for rank, amount in enumerate(given) if amount + step >= 1]
        rank = max(able, key=lambda rank: (step * (wanted[rank] - given[rank]), -step * rank))
        given[rank] += step
    return tuple(given)


def column_ranges(shares: Sequence[float], width: int, multiple: int) -> tuple[Range, ...]:
    """Columns of `width` by `shares`, cut at multiples of `multiple` where there are enough. Raises CannotCut."""
    if multiple > 1 and -(-width // multiple) < len(shares):
        return column_ranges(shares, width, 1)
    fitting = [u for u in _COLUMNS if u % multiple == 0 and (width % u == 0 or u == multiple)]
    enough = (u for u in fitting if -(-width // u) >= _UNITS_A_DEVICE * len(shares))
    unit = next(enough, fitting[-1])
    try:
        counts = whole_units(shares, -(-width // unit))
    except CannotCut as reason:
        raise CannotCut(f"of {width} columns {reason} (a unit: {unit} columns)") from reason
    return _ranges([min(width, unit * edge) for edge in accumulate(counts, initial=0)])


def head_ranges(
    shares: Sequence[float], heads: int, group: int, features: int, multiple: int
) -> tuple[Range, ...]:
    """Query heads by `shares`, `group` of which read one key head and each of which has `features`.

    Whole groups where there are enough; else each device has whole groups, or some heads of one group. Cuts are at
    multiples of `multiple` features, or where that cannot be, of a head's. Raises CannotCut.
    """
    if multiple > 1:
        try:
            return _heads_at(shares, heads, group, features, multiple)
        except CannotCut:
            pass
    return _heads_at(shares, heads, group, features, 1)


def _heads_at(
    shares: Sequence[float], heads: int, group: int, features: int, multiple: int
) -> tuple[Range, ...]:
    unit = next(u for u in range(group, multiple * group + 1, group) if u * features % multiple == 0)
    if -(-heads // unit) >= len(shares):
        counts = whole_units(shares, -(-heads // unit))
        return _ranges([min(heads, unit * edge) for edge in accumulate(counts, initial=0)])
    places = [place for place in range(heads + 1) if place * features % multiple == 0 or place == heads]
    edges = _edges(shares, heads, group, places)
    if edges is None:
        raise CannotCut(
            f"{heads} heads of {features} features, {group} to a key head, cannot be cut for {len(shares)} devices"
        )
    return _ranges(edges)


def _ranges(edges: Sequence[int]) -> tuple[Range, ...]:
    return tuple(pairwise(edges))


def _edges(shares: Sequence[float], heads: int, group: int, places: Sequence[int]) -> list[int] | None:
    """The cuts nearest to `shares`, by the least sum of squares; of equal ones that which gives more to lower ranks."""
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [0])}
    for share in shares:
        wanted = share / sum(shares) * heads
        longer: dict[int, tuple[float, list[int]]] = {}
        for start, (error, edges) in best.items():
            for stop in (place for place in places if _fits(start, place, group)):
                found = (round(error + (stop - start - wanted) ** 2, _DIGITS), [*edges, stop])
                if stop not in longer or _order(found) < _order(longer[stop]):
                    longer[stop] = found
        best = longer
    return best[heads][1] if heads in best else None


def _order(found: tuple[float, list[int]]) -> tuple[float, list[int]]:
    return found[0], [-edge for edge in found[1]]


def _fits(start: int, stop: int, group: int) -> bool:
    whole = start % group == 0 and stop % group == 0
    return start < stop and (whole or start // group == (stop - 1) // group)
