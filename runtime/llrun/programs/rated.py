"""The envelope at the rates that were measured, and what stages give there.

The definitions are the planner's: nothing overlaps within one token, the messages of one hop between consecutive stages
share its latency, and one that skips stages pays its own. A group takes for a block what its slowest shard, the sum and
its slowest tail take, and keeps all its devices busy as long; what enters it goes to one after the other. A block's
seconds are the planner's for that device times the device's slowness (measured seconds / predicted seconds). Blocks
that stream are read while others run, on other devices too (turns.py); of a chunk of prompt, and of a group, each takes
at least what it takes to come from disk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from math import inf

from llrun.programs.groups import block_of, group_blocks, held_ids, is_group, shard_id, tail_id
from llrun.programs.layouts import Layout, layout_of
from llrun.programs.sums import sum_seconds
from llrun.programs.transmissions import Crossing, Hop, crossings, deliveries
from llrun.programs.turns import Turn, token_seconds
from llrun.schema import Envelope, EnvelopeBlock, GraphRecord, Rows, Shapes, StageRecord

TOKEN = 1  # row: a token and not a chunk

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
        return 2 * max((c.held_bytes * self.rows(c) for c in self.crossings), default=0)

    def group_buffer_bytes(self, stages: Stages, device: str) -> int:
        """What a device of a group has buffers for beside these: of a chunk, a part of a sum from each of the others,
        and one that it sends."""
        most = 0
        for stage in stages:
            if is_group(stage) and device in stage.devices:
                sizes = [part.held_bytes * self.rows_of(block) for block, part in self.sums(stage).items()]
                most = max([most, *(len(stage.devices) * size for size in sizes)])
        return most

    def rows_of(self, block: int) -> int:
        """Rows of a chunk of prompt that a block takes."""
        return 1 if self._last_row_only(block) else self.shapes.chunk

    def _last_row_only(self, block: int) -> bool:
        return self.graph.blocks[block].rows == Rows.LAST

    def sums(self, stage: StageRecord) -> Mapping[int, Layout]:
        """[block]: the parts of what a group sums; of a stage that is no group of the graph nothing."""
        blocks = group_blocks(self.graph, stage) or {}
        return {
            block: max(
                (self._layouts[part] for part in blocks[block].partials), key=lambda part: part.held_bytes
            )
            for block in range(*stage.blocks)
            if block in blocks
        }

    @cached_property
    def _layouts(self) -> Mapping[int, Layout]:
        return {tensor.id: layout_of(tensor) for tensor in self.graph.tensors}

    # --- what stages give --------------------------------------------------------------------------------------------

    def predict(self, stages: Stages) -> float:
        """TPOT in seconds, with a full context; for ever where a device does not hold what it should run."""
        rings = {name: device.ring for name, device in self.envelope.devices.items()}
        travel_s = sum(self._travel(stages, TOKEN).values())
        return token_seconds([self._turn(stage) for stage in stages], rings, travel_s)

    def _turn(self, stage: StageRecord) -> Turn:
        if is_group(stage):
            return Turn("", [(self.together_s(stage, TOKEN), 0.0)])
        name, held = stage.lead, self.blocks.get(stage.lead, {})
        return Turn(
            name,
            [
                (self.computing_s(name, block), self.loading_s(name, block)) if block in held else (inf, 0.0)
                for block in range(*stage.blocks)
            ],
        )

    def chunk_s(self, stages: Stages) -> float:
        """Seconds of a chunk of prompt from end to end."""
        return self.pipeline_s(stages, 1)

    def pipeline_s(self, stages: Stages, chunks: int, rows: int | None = None) -> float:
        """Seconds of `chunks` of `rows` (None: full ones) behind each other: one from end to end, the others behind the
        slowest device or link, without what is done for the newest row alone."""
        once_s, each_s = self.piece_s(stages, rows or self.shapes.chunk)
        return once_s + (chunks - 1) * each_s if chunks > 1 else once_s

    def piece_s(self, stages: Stages, rows: int) -> tuple[float, float]:
        """Seconds of a piece of `rows` from end to end, and of each that follows it."""
        travel = self._travel(stages, rows)
        links = [seconds for way, seconds in travel.items() if way is not None]
        slowest = max([0.0, *self._every_chunk(stages, rows).values(), *links])
        once = sum(self._stage_s(stage, rows) for stage in stages) + sum(travel.values())
        return once, slowest

    def seconds_of(self, stages: Stages) -> Mapping[str, float]:
        """[device]: seconds that it computes for a token."""
        seconds: dict[str, float] = defaultdict(float)
        for stage in stages:
            for name in stage.devices:
                seconds[name] += sum(self.computing_s(name, piece) for piece in self.pieces(stage, name))
        return seconds

    def _every_chunk(self, stages: Stages, rows: int) -> Mapping[str, float]:
        """[device]: seconds that each chunk keeps it busy. The devices of a group wait for each other."""
        seconds: dict[str, float] = defaultdict(float)
        for stage in stages:
            taken = self._stage_s(stage, rows, every=True)
            for name in stage.devices:
                seconds[name] += taken
        return seconds

    def _stage_s(self, stage: StageRecord, rows: int, every: bool = False) -> float:
        """Seconds of a token or of a chunk. `every`: without the blocks that only a prompt's last chunk runs."""
        if is_group(stage):
            return self.together_s(stage, rows, every)
        blocks = (b for b in range(*stage.blocks) if not (every and self._last_row_only(b)))
        return sum(self._seconds(stage.lead, block, rows) for block in blocks)

    def together_s(self, stage: StageRecord, rows: int, every: bool = False) -> float:
        """Seconds of a group: of each block the slowest shard, the sum, and the slowest tail."""
        sums, count, total = self.sums(stage), len(self.graph.blocks), 0.0
        if stage.all_reduce is None or len(sums) < len(range(*stage.blocks)):
            return inf
        for block, part in sums.items():
            if every and self._last_row_only(block):
                continue
            size = part.wire_bytes * (1 if self._last_row_only(block) else rows)
            total += max(
                self._seconds(name, shard_id(block, count, stage.division), rows) for name in stage.devices
            )
            total += sum_seconds(stage.all_reduce, stage.devices, stage.root, size, self._delay)
            total += max(
                self._seconds(name, tail_id(block, count, stage.division), rows)
                for name in self._tails(stage, block)
            )
        return total

    def _tails(self, stage: StageRecord, block: int) -> tuple[str, ...]:
        """Who is to run a block's tail: of the last one, who holds it, and the lead."""
        if block < stage.blocks[1] - 1:
            return stage.devices
        tail = tail_id(block, len(self.graph.blocks), stage.division)
        return tuple(n for n in stage.devices if n == stage.lead or tail in self.blocks.get(n, ()))

    def _delay(self, source: str, destination: str) -> tuple[float, float]:
        link = self.link(source, destination)
        return link.latency_s, 1 / link.bytes_per_s

    def computing_s(self, device: str, piece: int) -> float:
        """Seconds that a token takes in a piece that is in memory; for ever where the device does not hold it."""
        each = self.blocks.get(device, {}).get(piece)
        return inf if each is None else each.decode_s * self.slowness(device)

    def _seconds(self, device: str, piece: int, rows: int) -> float:
        """Seconds of a token, or of a chunk of `rows`, of which a few take what reading the weights takes."""
        each = self.blocks.get(device, {}).get(piece)
        if each is None:
            return inf
        computing_s = self.computing_s(device, piece)
        if rows != TOKEN:
            filled = rows / self.shapes.chunk
            if filled < 1 and not self._last_row_only(block_of(piece, len(self.graph.blocks))):
                computing_s = min(each.chunk_s, max(each.decode_s, each.chunk_s * filled))
            else:
                computing_s = each.chunk_s
            computing_s *= self.slowness(device)
        return max(computing_s, self.loading_s(device, piece))

    def loading_s(self, device: str, piece: int) -> float:
        """Seconds until a piece that streams there has come from disk, for each token and each chunk; 0: it is kept."""
        known, each = self.envelope.devices[device], self.blocks[device][piece]
        return each.weights_bytes / known.disk_bytes_per_s if piece in known.streamed else 0.0

    def pieces(self, stage: StageRecord, device: str) -> Sequence[int]:
        """The ids of what a device runs of a stage. The last tail of a group is who holds it's, and the lead's."""
        ids = held_ids(stage, len(self.graph.blocks))
        spared = is_group(stage) and device not in self._tails(stage, stage.blocks[1] - 1)
        return ids[:-1] if spared else ids

    def _travel(self, stages: Stages, rows: int) -> Mapping[tuple[str, tuple[str, ...]] | None, float]:
        """[from, to the devices of a stage]: seconds that the links are busy with a token or a chunk of `rows`; [None]:
        those that messages wait. What goes to a group's devices together shares the greatest latency."""
        stage_of = {block: number for number, stage in enumerate(stages) for block in range(*stage.blocks)}
        leads, devices = [stage.lead for stage in stages], [stage.devices for stage in stages]
        busy: dict[tuple[str, tuple[str, ...]] | None, float] = defaultdict(float)
        busy[None] = sum(
            max(
                (self.link(a.lead, name).latency_s for name in b.devices if name not in a.devices),
                default=0.0,
            )
            for a, b in pairwise(stages)
        )
        for each in self.crossings:
            size = each.row_bytes * min(rows, self.rows(each))
            used = [block for block in each.consumers if block in stage_of]
            skipped: dict[Hop, float] = defaultdict(float)
            for to, hop in (
                deliveries(each.producer, used, stage_of, devices) if each.producer in stage_of else ()
            ):
                link = self.link(leads[hop[0]], to)
                busy[leads[hop[0]], devices[hop[1]]] += size / link.bytes_per_s
                skipped[hop] = max(skipped[hop], 0.0 if hop[1] == hop[0] + 1 else link.latency_s)
            busy[None] += sum(skipped.values())
        return busy


def owner_of(stages: Stages) -> Mapping[int, str]:
    """[block]: the device that runs it, of those that one device runs whole."""
    return {block: stage.lead for stage in stages if not is_group(stage) for block in range(*stage.blocks)}


def owners_of(stages: Stages) -> Mapping[int, str]:
    """[block]: who runs it, in words: a device, or those of a group."""
    return {block: "+".join(stage.devices) for stage in stages for block in range(*stage.blocks)}


def owned(stages: Stages, count: int) -> Mapping[str, set[int]]:
    """[device]: the ids of what it runs: blocks, or in a group pieces of them. `count`: of the graph's blocks."""
    blocks: dict[str, set[int]] = defaultdict(set)
    for stage in stages:
        for name in stage.devices:
            blocks[name].update(held_ids(stage, count))
    return dict(blocks)


def blocks_on(stages: Stages, device: str) -> set[int]:
    """The blocks that a device has a part in."""
    return {block for stage in stages if device in stage.devices for block in range(*stage.blocks)}


def devices_of(stages: Stages) -> frozenset[str]:
    """The devices that run something."""
    return frozenset(name for stage in stages for name in stage.devices)


def spans(blocks: Set[int] | Mapping[int, object]) -> str:
    """Block numbers as people write them: 0-3, 7."""
    found: list[list[int]] = []
    for block in sorted(blocks):
        if found and block == found[-1][1] + 1:
            found[-1][1] = block
        else:
            found.append([block, block])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found) or "none"
