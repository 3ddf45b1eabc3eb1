"""The envelope at the rates that were measured, and what stages give there.

The definitions are the planner's: nothing overlaps within one token, the messages of one hop between consecutive stages
share its latency, and one that skips stages pays its own. A block's seconds are the planner's for that device times the
device's slowness (measured seconds / predicted seconds).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from math import inf

from llrun.programs.transmissions import Crossing, crossings, deliveries
from llrun.schema import Envelope, EnvelopeBlock, GraphRecord, Rows, Shapes, StageRecord

Stages = Sequence[StageRecord]
Way = tuple[str, str]


@dataclass(frozen=True)
class LinkRate:
    """A message from one device to another takes latency_s + bytes / bytes_per_s."""

    latency_s: float
    bytes_per_s: float

    def seconds(self, size_bytes: float) -> float:
        return self.latency_s + size_bytes / self.bytes_per_s


@dataclass(frozen=True)
class Rates:
    """What was measured. `slowness`: [device] measured / predicted seconds of its blocks, 1.0 where it is not there.

    `links`: [from, to]; those that are not there are as the envelope has them.
    """

    slowness: Mapping[str, float] = field(default_factory=dict)
    links: Mapping[tuple[str, str], LinkRate] = field(default_factory=dict)


@dataclass(frozen=True)
class Rated:
    """The envelope with what is known of the devices now. `alive`: those that may be used, None for all. `shapes`: the
    bundle's context and chunk."""

    graph: GraphRecord
    envelope: Envelope
    head: str
    shapes: Shapes
    rates: Rates = field(default_factory=Rates)
    alive: Set[str] | None = None

    # --- what is there -----------------------------------------------------------------------------------------------

    @cached_property
    def crossings(self) -> tuple[Crossing, ...]:
        return crossings(self.graph)

    @cached_property
    def blocks(self) -> Mapping[str, Mapping[int, EnvelopeBlock]]:
        """[device][block]: what the device holds on disk."""
        return {name: {b.id: b for b in device.blocks} for name, device in self.envelope.devices.items()}

    @cached_property
    def _planned(self) -> Mapping[tuple[str, str], LinkRate]:
        links = self.envelope.links
        return {(k.source, k.destination): LinkRate(k.latency_s, k.bytes_per_s) for k in links}

    def link(self, source: str, destination: str) -> LinkRate:
        """The link's rates, measured or planned; one that nobody knows takes for ever."""
        way = source, destination
        rate = self.rates.links.get(way) or self._planned.get(way)
        return rate if rate and rate.bytes_per_s > 0 else LinkRate(inf, 1.0)

    def usable(self, device: str) -> bool:
        return device in self.envelope.devices and (self.alive is None or device in self.alive)

    def slowness(self, device: str) -> float:
        return self.rates.slowness.get(device, 1.0)

    def rows(self, crossing: Crossing) -> int:
        """Rows of a chunk of prompt that travel of a tensor."""
        return 1 if crossing.rows == Rows.LAST else self.shapes.chunk

    @cached_property
    def buffer_bytes(self) -> int:
        """Buffers of a device that speaks to others: one chunk being received and one being sent."""
        return 2 * max((c.row_bytes * self.rows(c) for c in self.crossings), default=0)

    # --- what stages give --------------------------------------------------------------------------------------------

    def predict(self, stages: Stages) -> float:
        """TPOT in seconds, with a full context; for ever where a device does not hold what it should run."""
        return sum(self.seconds_of(stages).values()) + sum(self._travel(stages, decode=True).values())

    def chunk_s(self, stages: Stages) -> float:
        """Seconds of a chunk of prompt from end to end."""
        return self.pipeline_s(stages, 1)

    def pipeline_s(self, stages: Stages, chunks: int) -> float:
        """Seconds of `chunks` behind each other: one from end to end, the others behind the slowest device or link."""
        busy, travel = self._busy(stages, decode=False).values(), self._travel(stages, decode=False)
        sending = [seconds for way, seconds in travel.items() if way is not None]
        slowest = max(*busy, *sending, 0.0) if busy else 0.0
        return sum(busy) + sum(travel.values()) + max(chunks - 1, 0) * slowest

    def seconds_of(self, stages: Stages) -> Mapping[str, float]:
        """[device]: seconds that it computes for a token."""
        return self._busy(stages, decode=True)

    def _busy(self, stages: Stages, decode: bool) -> Mapping[str, float]:
        seconds: dict[str, float] = defaultdict(float)
        for stage in stages:
            held, slow = self.blocks.get(stage.lead, {}), self.slowness(stage.lead)
            for block in range(*stage.blocks):
                each = held.get(block)
                seconds[stage.lead] += (
                    inf if each is None else (each.decode_s if decode else each.chunk_s) * slow
                )
        return seconds

    def _travel(self, stages: Stages, decode: bool) -> Mapping[Way | None, float]:
        """[from, to]: seconds that the link is busy with a token, or with a chunk; [None]: those that messages wait."""
        stage_of = {block: number for number, stage in enumerate(stages) for block in range(*stage.blocks)}
        leads = [stage.lead for stage in stages]
        busy: dict[Way | None, float] = defaultdict(float)
        busy[None] = sum(self.link(a, b).latency_s for a, b in pairwise(leads))
        for each in self.crossings:
            size = each.row_bytes * (1 if decode else self.rows(each))
            used = [block for block in each.consumers if block in stage_of]
            for to, hop in (
                deliveries(each.producer, used, stage_of, leads) if each.producer in stage_of else ()
            ):
                link = self.link(leads[hop[0]], to)
                busy[leads[hop[0]], to] += size / link.bytes_per_s
                busy[None] += 0.0 if hop[1] == hop[0] + 1 else link.latency_s
        return busy


def owner_of(stages: Stages) -> Mapping[int, str]:
    """[block]: the device that runs it."""
    return {block: stage.lead for stage in stages for block in range(*stage.blocks)}


def owned(stages: Stages) -> Mapping[str, set[int]]:
    """[device]: the blocks that it runs."""
    blocks: dict[str, set[int]] = defaultdict(set)
    for stage in stages:
        blocks[stage.lead].update(range(*stage.blocks))
    return dict(blocks)


def spans(blocks: Set[int] | Mapping[int, object]) -> str:
    """Block numbers as people write them: 0-3, 7."""
    found: list[list[int]] = []
    for block in sorted(blocks):
        if found and block == found[-1][1] + 1:
            found[-1][1] = block
        else:
            found.append([block, block])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found) or "none"
