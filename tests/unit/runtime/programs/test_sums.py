"""What an all-reduce takes: delays, and who sends and receives how much."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy_group
import pytest

from llrun.programs.sums import rounds, sum_seconds
from llrun.programs.transmissions import transmissions
from llrun.programs.write import write_programs
from llrun.schema import AllReduceKind, DeviceProgram, Receive, Send

EIGHT = tuple("abcdefgh")
STAR, DIRECT, RING = AllReduceKind.STAR, AllReduceKind.DIRECT, AllReduceKind.RING


@pytest.mark.parametrize(("kind", "delays"), [(STAR, 2), (DIRECT, 1), (RING, 8)])
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


# --- what programs of several blocks take, instruction by instruction -------------------------------------------------

NAMES = ("h", "a", "b", "d")
BYTES = 1.0


@pytest.mark.parametrize("kind", AllReduceKind)
@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("far", [1.0, 5.0])
def test_delays_of_a_chain_of_blocks(kind: AllReduceKind, count: int, far: float) -> None:
    ends = {(a, b): (far if "d" in (a, b) else 1.0, 0.0) for a in NAMES for b in NAMES}
    predicted = sum_seconds(kind, NAMES[:count], 0, BYTES, lambda a, b: ends[a, b])
    assert predicted == pytest.approx(added(kind, count, ends))


@pytest.mark.parametrize("kind", AllReduceKind)
@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize(("wait_s", "byte_s"), [(1.0, 0.1), (0.0, 1.0), (1.0, 1.0), (0.1, 1.0)])
def test_bytes_of_a_chain_of_blocks(kind: AllReduceKind, count: int, wait_s: float, byte_s: float) -> None:
    """Here one message goes behind the other; in truth those that leave at once share the link, which takes longer."""
    ends = {(a, b): (wait_s, byte_s) for a in NAMES for b in NAMES}
    predicted = sum_seconds(kind, NAMES[:count], 0, BYTES, lambda a, b: ends[a, b])
    least = added(kind, count, ends)
    if (
        kind is DIRECT
    ):  # until devices have found their places behind each other, some are sent to by all at once
        assert predicted - 1e-9 <= least <= predicted + (count - 2) * byte_s * BYTES
    else:
        assert least - 1e-9 <= predicted <= least + 2 * (count - 2) * byte_s * BYTES + 1e-9


def added(kind: AllReduceKind, count: int, ends: Mapping[tuple[str, str], tuple[float, float]]) -> float:
    """What a block adds to a token's time."""
    return (played(kind, count, 5, ends) - played(kind, count, 1, ends)) / 4


def played(
    kind: AllReduceKind, count: int, blocks: int, ends: Mapping[tuple[str, str], tuple[float, float]]
) -> float:
    """Seconds of a token through so many blocks of a group that compute in no time, by its devices' programs."""
    group = numpy_group.split(NAMES[:count], kind, 0, blocks=(1, 1 + blocks))
    graph, stages = numpy_group.graph(group), numpy_group.stages("h", group)
    programs = write_programs(graph, stages, transmissions(graph, stages))
    clock, at = dict.fromkeys(programs, 0.0), dict.fromkeys(programs, 0)
    sends_s, takes_s = defaultdict[str, float](float), defaultdict[str, float](float)
    came: dict[tuple[str, int], float] = {}
    while ready := [name for name in programs if can_go_on(programs[name], at[name], name, came)]:
        # Who is earliest goes on, so that what reaches a device is in the order of time.
        name = min(ready, key=lambda each: clock[each])
        match instruction := programs[name].instructions[at[name]]:
            case Receive():
                clock[name] = max(clock[name], came[name, instruction.tensor])
            case Send():
                to, (wait_s, byte_s) = instruction.destination, ends[name, instruction.destination]
                sends_s[name] = max(sends_s[name], clock[name]) + byte_s * BYTES
                takes_s[to] = max(takes_s[to] + byte_s * BYTES, sends_s[name] + wait_s)
                came[to, instruction.tensor] = takes_s[to]
        at[name] += 1
    assert all(at[name] == len(programs[name].instructions) for name in programs)
    return clock["h"]


def can_go_on(program: DeviceProgram, place: int, name: str, came: Mapping[tuple[str, int], float]) -> bool:
    if place == len(program.instructions):
        return False
    each = program.instructions[place]
    return not isinstance(each, Receive) or (name, each.tensor) in came
