"""Which format each set of matrices has, within so many bits a weight: the choice of least divergence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from llcompile.ir.packing import BITS, bits_of
from llcompile.quantize.measure import COARSEST, Measured

STEPS = 32768  # of the budget, up to one of which the choice leaves unused for each set
LEAST_BITS, MOST_BITS = bits_of(COARSEST), max(map(bits_of, BITS))


@dataclass(frozen=True)
class Chosen:
    """`formats`: of the checkpoint's matrices, by name; `divergences`: what each costs, an equal part of its set's.
    `bits`: a weight, scales included. `divergence`: what all cost together, where costs add up; `bound`: less than that
    no choice within the budget has."""

    formats: Mapping[str, str]
    divergences: Mapping[str, float]
    bits: float
    divergence: float
    bound: float


def choose(sets: Sequence[Measured], bits: float) -> Chosen:
    """The formats of least divergence in which the matrices take at most `bits` bits a weight, LEAST_BITS or more.

    A knapsack of which one of several goes in of each kind, by dynamic programming over the budget, of which sizes are
    rounded up to one of STEPS; what is left then goes where it gains most. `bound` is of the relaxation in which a set
    may be in two formats.
    """
    elements = sum(one.elements for one in sets)
    spare = max(bits - LEAST_BITS, 0.0) * elements
    taken = _fill(sets, _by_steps(sets, spare), spare)
    pairs = list(zip(sets, taken, strict=True))
    return Chosen(
        formats={name: format for one, format in pairs for name in one.names},
        divergences={name: one.divergence[f] / len(one.names) for one, f in pairs for name in one.names},
        bits=LEAST_BITS + sum(_size(one, format) for one, format in pairs) / elements,
        divergence=sum(one.divergence[format] for one, format in pairs),
        bound=_bound(sets, spare),
    )


def _size(one: Measured, format: str) -> float:
    """Bits that it takes beyond the coarsest format's."""
    return (BITS[format] - BITS[COARSEST]) * one.elements


def _by_steps(sets: Sequence[Measured], spare: float) -> list[str]:
    """The best formats whose sizes, each rounded up, fit in STEPS steps of `spare`."""

    def steps(one: Measured, format: str) -> int:
        size = _size(one, format)
        return min(ceil(size / spare * STEPS), STEPS + 1) if size and spare else (STEPS + 1) * bool(size)

    names, least, ways = list(BITS), np.zeros(STEPS + 1), []
    for one in sets:
        sums = np.full((len(names), STEPS + 1), np.inf)
        for number, format in enumerate(names):
            if (count := steps(one, format)) <= STEPS:
                sums[number, count:] = least[: STEPS + 1 - count] + one.divergence[format]
        ways.append(sums.argmin(0))
        least = sums.min(0)
    taken, left = list[str](), STEPS
    for one, way in zip(reversed(sets), reversed(ways), strict=True):
        taken.append(names[way[left]])
        left -= steps(one, taken[-1])
    return taken[::-1]


def _fill(sets: Sequence[Measured], taken: Sequence[str], spare: float) -> list[str]:
    """`taken`, with what rounding sizes up has left spent one set after another."""
    found = list(taken)
    left = spare - sum(_size(one, format) for one, format in zip(sets, found, strict=True))
    while True:
        finer = [
            (one.divergence[found[i]] - one.divergence[format], i, format)
            for i, one in enumerate(sets)
            for format in BITS
            if _size(one, format) - _size(one, found[i]) <= left + 1e-9 * spare
        ]
        gain, number, format = max(finer, default=(0.0, 0, ""))
        if gain <= 0:
            return found
        left -= _size(sets[number], format) - _size(sets[number], found[number])
        found[number] = format


def _bound(sets: Sequence[Measured], spare: float) -> float:
    """The least divergence where a part of a set may be in another format: along the convex hull of each, the steps
    that gain most for their size first."""
    total, steps = 0.0, list[tuple[float, float]]()
    for one in sets:
        points = [(_size(one, format), one.divergence[format]) for format in BITS]
        size, cost = 0.0, one.divergence[COARSEST]
        total += cost
        while ahead := [p for p in points if p[0] > size and p[1] < cost]:
            best = max(ahead, key=lambda p: ((cost - p[1]) / (p[0] - size), p[0]))
            steps.append((best[0] - size, cost - best[1]))
            size, cost = best
    for size, gain in sorted(steps, key=lambda each: -each[1] / each[0]):
        share = min(1.0, spare / size) if size else 1.0
        total -= gain * share
        spare -= size * share
    return max(total, 0.0)
