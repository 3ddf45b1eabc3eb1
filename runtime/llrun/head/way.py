"""One token's way through the devices: how long each computed, and what went from one to the next. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llrun.head.present import Pass, Present
from llrun.head.readings import LinkReading
from llrun.programs.rated import devices_of
from llrun.programs.transmissions import crossings, deliveries
from llrun.schema import GraphRecord, LinkRecord, StageRecord

Hops = Mapping[tuple[int, str, str], int]  # [stage that it leaves, its lead, destination]: bytes


@dataclass(frozen=True)
class Spent:
    """Seconds of a device with a stage: computing, idle before it began, and in handing on what it made."""

    device: str
    compute_s: float
    wait_s: float
    send_s: float


@dataclass(frozen=True)
class Stay:
    """The token in one stage, of a group on all its devices at once."""

    blocks: tuple[int, int]
    spent: tuple[Spent, ...]


@dataclass(frozen=True)
class Hop:
    """What goes from a stage to a device of a later one: `seconds` by what the link's traffic showed lately, or where
    `measured` is false, in part by the plan. None of it is timed by itself: devices share no clock. None: nothing is
    known of the link."""

    source: str
    destination: str
    size_bytes: int
    seconds: float | None
    measured: bool


@dataclass(frozen=True)
class Way:
    """The newest token of which every device has told. `sequences`: how many had one in the same pass."""

    position: int
    sequences: int
    legs: tuple[Stay | Hop, ...]


def way_of(
    present: Present, hops: Hops, planned: Sequence[LinkRecord], links: Sequence[LinkReading]
) -> Way | None:
    """None before there is one under these stages. `hops`: theirs."""
    found = _newest(present)
    if not found:
        return None
    first = next(iter(found.values()))
    legs: list[Stay | Hop] = []
    for number, stage in enumerate(present.stages):
        spent = tuple(_spent(name, found[name], present.stages, number) for name in stage.devices)
        legs.append(Stay(stage.blocks, spent))
        for (start, source, to), size_bytes in hops.items():
            if start == number:
                legs.append(Hop(source, to, size_bytes, *_seconds((source, to), size_bytes, planned, links)))
    return Way(max(step.position for step in first), len(first), tuple(legs))


def _newest(present: Present) -> dict[str, Pass]:
    """Of each device that has a stage, what it did for the newest pass that all of them have told of."""
    names = sorted(devices_of(present.stages))
    told = [
        {
            frozenset((step.sequence, step.position) for step in each): each
            for each in present.passes.get(name, ())
        }
        for name in names
    ]
    if not told or not all(told):
        return {}
    for key in reversed(told[0]):
        if all(key in each for each in told):
            return {name: each[key] for name, each in zip(names, told, strict=True)}
    return {}


def _spent(device: str, steps: Pass, stages: Sequence[StageRecord], number: int) -> Spent:
    """A device that has several stages waits before the first and hands on after the last of them."""
    mine = [i for i, stage in enumerate(stages) if device in stage.devices]
    runs = [sum(each) for each in zip(*(step.runs for step in steps), strict=False)]
    if len(runs) == len(mine):
        compute_s = runs[mine.index(number)]
    else:  # a group's are cut at its sums
        largest = max(mine, key=lambda i: stages[i].blocks[1] - stages[i].blocks[0])
        compute_s = sum(step.compute_s for step in steps) if number == largest else 0.0
    wait_s = sum(step.wait_s for step in steps) if number == mine[0] else 0.0
    send_s = sum(step.send_s for step in steps) if number == mine[-1] else 0.0
    return Spent(device, compute_s, wait_s, send_s)


def hops_of(graph: GraphRecord, stages: Sequence[StageRecord]) -> Hops:
    """What goes from stage to stage of one token, in the order of stages."""
    stage_of = {block: number for number, stage in enumerate(stages) for block in range(*stage.blocks)}
    devices = [stage.devices for stage in stages]
    found: dict[tuple[int, str, str], int] = {}
    for each in crossings(graph):
        for to, (start, _) in deliveries(each.producer, each.consumers, stage_of, devices):
            key = start, stages[start].lead, to
            found[key] = found.get(key, 0) + each.row_bytes
    return dict(sorted(found.items()))


def _seconds(
    way: tuple[str, str], size_bytes: int, planned: Sequence[LinkRecord], links: Sequence[LinkReading]
) -> tuple[float | None, bool]:
    shown = next((link for link in links if (link.source, link.destination) == way), None)
    plan = next((link for link in planned if (link.source, link.destination) == way), None)
    latency_s, rate = (shown.latency_s, shown.bytes_per_s) if shown else (None, None)
    measured = latency_s is not None and rate is not None
    if plan:
        latency_s, rate = latency_s or plan.latency_s, rate or plan.bytes_per_s
    if latency_s is None or not rate:
        return None, False
    return latency_s + size_bytes / rate, measured
