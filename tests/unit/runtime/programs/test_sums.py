"""What an all-reduce takes: delays, and who sends and receives how much."""

from __future__ import annotations

import pytest

from llrun.programs.sums import rounds, sum_seconds
from llrun.schema import AllReduceKind

EIGHT = tuple("abcdefgh")
STAR, DIRECT, RING = AllReduceKind.STAR, AllReduceKind.DIRECT, AllReduceKind.RING


@pytest.mark.parametrize(("kind", "delays"), [(STAR, 2), (DIRECT, 1), (RING, 14)])
def test_delays_of_eight_devices(kind: AllReduceKind, delays: int) -> None:
    assert sum_seconds(kind, EIGHT, 3, 0.0, lambda a, b: (1.0, 0.0)) == delays


@pytest.mark.parametrize(("kind", "messages"), [(STAR, 14), (DIRECT, 7), (RING, 14)])
def test_messages_behind_each_other(kind: AllReduceKind, messages: int) -> None:
    assert sum_seconds(kind, EIGHT, 3, 10.0, lambda a, b: (0.0, 0.1)) == messages


@pytest.mark.parametrize("kind", AllReduceKind)
@pytest.mark.parametrize("count", [2, 3, 5])
def test_everybody_has_the_sum_after_the_rounds(kind: AllReduceKind, count: int) -> None:
    devices = EIGHT[:count]
    parts = {name: {name} for name in devices}
    for ways in rounds(kind, devices, count - 1):
        sent = {way: set(parts[way[0]]) for way in ways}
        for (_, to), known in sent.items():
            parts[to] |= known
    assert all(known == set(devices) for known in parts.values())


def test_a_round_takes_as_long_as_its_slowest_link() -> None:
    def delay(source: str, to: str) -> tuple[float, float]:
        return (9.0 if {source, to} == {"a", "b"} else 1.0), 0.0

    assert sum_seconds(STAR, ("a", "b", "c"), 2, 1.0, delay) == 2.0
    assert sum_seconds(DIRECT, ("a", "b", "c"), 2, 1.0, delay) == 9.0
