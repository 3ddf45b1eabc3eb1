"""Comparing two programs on a machine whose speed moves: by turns, round after round, ratios within a round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

# Tokens a second of each test of one run, by the test's name.
Rates = Mapping[str, float]


@dataclass(frozen=True)
class Contest:
    """What is measured by turns. `programs`: by name, each a run of all the tests; `read_rate`: measures the
    memory's, in GB/s."""

    label: str
    programs: Mapping[str, Callable[[], Rates]]
    read_rate: Callable[[], float]


@dataclass
class Series:
    """A contest's results: for each program and test, and for the memory, one figure a round."""

    rates: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    reads: list[float] = field(default_factory=list)

    def best(self, names: Sequence[str], test: str) -> str:
        """The program with the highest median among `names`."""
        return max(names, key=lambda name: statistics.median(self.rates[name][test]))


def play(contest: Contest, rounds: int, tell: Callable[[str], None]) -> Series:
    """Run every program once a round, in turn and in the opposite order every other round, with the memory's
    rate measured between the first and the second."""
    series = Series()
    for number in range(rounds):
        names = list(contest.programs)[:: -1 if number % 2 else 1]
        for place, name in enumerate(names):
            if place == 1 or len(names) == 1:
                series.reads.append(contest.read_rate())
            rates = contest.programs[name]()
            for test, rate in rates.items():
                series.rates.setdefault(name, {}).setdefault(test, []).append(rate)
            told = ", ".join(f"{test} {rate:.1f}" for test, rate in rates.items())
            tell(f"round {number + 1}/{rounds}: {contest.label}: {name}: {told}")
    return series


@dataclass(frozen=True)
class Spread:
    """Median, least and largest of some figures."""

    median: float
    least: float
    largest: float


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Of figures of the same rounds: a slow minute of the machine slows both and leaves their ratio."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])
