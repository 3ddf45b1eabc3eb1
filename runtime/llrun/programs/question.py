"""The search for the best stages as arrays: devices are numbers, 0 the head, then those workers that may be used."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf

import numpy as np
import numpy.typing as npt

from llrun.programs.moving import read_seconds, rows_bytes
from llrun.programs.rated import Rated, Stages, owned, owner_of
from llrun.programs.ring import weights_bytes

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
HEAD = 0
PICO = 1e12
MOST_S = (
    1000.0  # a block or a hop that takes longer takes this: sums of whole picoseconds stay within 64 bits
)
NONE = 1 << 61  # no plan: twice this is still a number


@dataclass(frozen=True)
class Flow:
    """A tensor that can cost more than one hop: producer, consumers (ascending), bytes of a row."""

    producer: int
    consumers: tuple[int, ...]
    row_bytes: int


@dataclass(frozen=True)
class Question:
    """`seconds` [device, block]: of a token, and of the move there divided by the tokens to come; inf: not held.

    `stored`, `active` [device, block]: bytes of weights and caches, and of activations. `there` [device, block]: blocks
    that stay in memory until the change is done. `free` [device]: bytes for all of these. `alone`: of the head if it
    runs everything. `latency_s`, `byte_s` [from, to]; `flows`: in the order of production. `limit` [device, start]: no
    stage that begins there has a greater stop.
    """

    names: tuple[str, ...]
    seconds: Floats
    stored: Ints
    active: Ints
    there: Bools
    free: Ints
    alone: int
    latency_s: Floats
    byte_s: Floats
    flows: tuple[Flow, ...]
    limit: Ints

    @property
    def blocks(self) -> int:
        return int(self.seconds.shape[1])

    @property
    def devices(self) -> int:
        return len(self.names)

    @cached_property
    def held(self) -> Bools:
        return np.isfinite(self.seconds)

    @cached_property
    def sums(self) -> Ints:
        """[device, block]: picoseconds of the blocks before it, of those that are held. Whole numbers, so that equal
        plans are equal."""
        return _running(picoseconds(np.where(self.held, self.seconds, 0.0)))

    @cached_property
    def hops(self) -> Ints:
        """[from, to, block]: picoseconds of a hop to a stage that begins at the block: latency, and what the block
        before made and it uses."""
        near = np.zeros(self.blocks + 1)
        for flow in self.flows:
            if flow.producer + 1 in flow.consumers:
                near[flow.producer + 1] += flow.row_bytes
        whole = picoseconds(self.latency_s[..., None] + near * self.byte_s[..., None])
        return np.where(np.isfinite(self.latency_s)[..., None], whole, NONE)

    @cached_property
    def far(self) -> tuple[Flow, ...]:
        """The flows that can cost more than the hop behind their producer."""
        return tuple(flow for flow in self.flows if flow.consumers != (flow.producer + 1,))

    @cached_property
    def last(self) -> Ints:
        """[device, start]: the greatest stop of a worker's stage that begins there; `start` itself: there is none."""
        return np.pad(np.minimum(self.stops, self.limit), ((0, 0), (0, 1)))

    @property
    def stops(self) -> Ints:
        """[device, start]: the same by what is held and fits alone."""
        starts = np.arange(self.blocks)
        stops = np.zeros((self.devices, self.blocks), np.int64)
        for device in range(self.devices):
            # Row: start, column: last block. What fits and what is held stays so when the stop comes nearer.
            right = self._fits(device, self._ranges(device)) & (self._gaps(device) == 0)
            right[:, -1] = right[0, :] = False  # the ends are the head's
            stops[device] = starts + right.sum(axis=1)
        return stops

    def _ranges(self, device: int) -> tuple[Ints, Ints]:
        """Fresh bytes and peak of activations of blocks start..column, below the diagonal of none."""
        sums = _running(np.where(self.there[device], 0, self.stored[device]))
        upper = np.triu(np.ones((self.blocks, self.blocks), bool))
        active: Ints = np.maximum.accumulate(np.where(upper, self.active[device], 0), axis=1)
        fresh: Ints = np.where(upper, sums[1:] - sums[:-1, None], NONE)
        return fresh, active

    def _gaps(self, device: int) -> Ints:
        missing = _running((~self.held[device]).astype(np.int64))
        gaps: Ints = missing[1:] - missing[:-1, None]
        return gaps

    def _fits(self, device: int, ranges: tuple[Ints, Ints]) -> Bools:
        fresh, active = ranges
        there = self.there[device]
        kept = int(self.stored[device][there].sum())
        peak = np.maximum(active, int(self.active[device][there].max(initial=0)))
        fits: Bools = fresh + peak + kept <= self.free[device]
        return fits

    @cached_property
    def returns(self) -> Ints:
        """[stop of the head's first stage]: the earliest start of its last one; `blocks`: there is none."""
        fresh = _running(np.where(self.there[HEAD], 0, self.stored[HEAD]))
        count, active = self.blocks, self.active[HEAD]
        first = np.concatenate(([0], np.maximum.accumulate(active)))[:count]
        second = np.maximum.accumulate(active[::-1])[::-1]
        both = fresh[:count, None] + (fresh[-1] - fresh[:count])
        gap = _running((~self.held[HEAD]).astype(np.int64))
        right = self._fits(HEAD, (both, np.maximum(first[:, None], second)))
        right &= (gap[:count, None] == 0) & (gap[-1] - gap[:count] == 0)
        right &= np.arange(count) > np.arange(count)[:, None]  # a worker's block at least lies between
        right[0] = False
        returns: Ints = count - right.sum(axis=1)
        return returns

    @cached_property
    def head_alone(self) -> bool:
        """Whether the head can run everything."""
        needs = int(self.stored[HEAD].sum()) + int(self.active[HEAD].max(initial=0))
        return bool(self.held[HEAD].all()) and needs <= self.alone

    def among(self, kept: Sequence[int]) -> Question:
        """The question with these devices alone, the head first."""
        pairs = np.ix_(kept, kept)
        return replace(
            self,
            names=tuple(self.names[device] for device in kept),
            seconds=self.seconds[kept],
            stored=self.stored[kept],
            active=self.active[kept],
            there=self.there[kept],
            free=self.free[kept],
            latency_s=self.latency_s[pairs],
            byte_s=self.byte_s[pairs],
            limit=self.limit[kept],
        )


def picoseconds(seconds: Floats) -> Ints:
    whole: Ints = np.rint(np.minimum(seconds, MOST_S) * PICO).astype(np.int64)
    return whole


def _running(values: Ints) -> Ints:
    """Sums of the values before each, along the last axis, and of all."""
    zero = np.zeros((*values.shape[:-1], 1), np.int64)
    return np.concatenate((zero, np.cumsum(values, axis=-1)), axis=-1)


def question(
    rated: Rated, before: Stages, held: Sequence[int], to_come: float, lost: Set[str]
) -> Question | None:
    """The arrays of `rated`; None where the head holds nothing. See Placement.best."""
    workers = [
        n
        for n, d in sorted(rated.envelope.devices.items())
        if n != rated.head and d.blocks and rated.usable(n)
    ]
    if rated.head not in rated.envelope.devices:
        return None
    names = (rated.head, *workers)
    shape = len(names), len(rated.graph.blocks)
    seconds, stored = np.full(shape, inf), np.zeros(shape, np.int64)
    active, there = np.zeros(shape, np.int64), np.zeros(shape, bool)
    owners, old = owner_of(before), owned(before, shape[1]) if not lost else {}
    for number, name in enumerate(names):
        slow = rated.slowness(name)
        for block, each in rated.blocks[name].items():
            if block >= shape[1]:
                continue
            seconds[number, block] = max(each.decode_s * slow, rated.loading_s(name, block))
            streams = block in rated.envelope.devices[name].streamed
            stored[number, block] = each.cache_bytes + (0 if streams else each.weights_bytes)
            active[number, block] = each.activation_bytes
            there[number, block] = block in old.get(name, ())
            if to_come > 0 and before and owners.get(block) != name:
                seconds[number, block] += _move_s(rated, block, name, owners.get(block), held, lost) / to_come
    devices = [rated.envelope.devices[name] for name in names]
    pieces = [_beside(rated, name, old.get(name, set())) for name in names]
    free = np.array([d.memory_bytes - d.runtime_bytes for d in devices], np.int64) - np.array(
        pieces, np.int64
    )
    links = [[rated.link(a, b) if a != b else None for b in names] for a in names]
    return Question(
        names=names,
        seconds=seconds,
        stored=stored,
        active=active,
        there=there,
        free=free - rated.buffer_bytes,
        alone=int(free[HEAD]) - (rated.buffer_bytes if set(old) - {rated.head} else 0),
        latency_s=np.array([[link.latency_s if link else 0.0 for link in row] for row in links]),
        byte_s=np.array([[1 / link.bytes_per_s if link else 0.0 for link in row] for row in links]),
        flows=tuple(Flow(c.producer, c.consumers, c.row_bytes) for c in rated.crossings),
        limit=np.full(shape, shape[1], np.int64),
    )


def _beside(rated: Rated, device: str, old: Set[int]) -> int:
    """What a device's memory holds beside whole blocks: its ring, and until a change is done pieces that it runs."""
    known = rated.envelope.devices[device]
    mine = [b for b in rated.blocks[device].values() if b.id in old and b.id >= len(rated.graph.blocks)]
    kept = sum(
        block.cache_bytes + (0 if block.id in known.streamed else block.weights_bytes) for block in mine
    )
    return kept + weights_bytes(known, known.streamed)


def _move_s(
    rated: Rated, block: int, device: str, owner: str | None, held: Sequence[int], lost: Set[str]
) -> float:
    """Seconds to bring a block to a device, as if it moved alone."""
    each = rated.blocks[device][block]
    read_s = read_seconds(rated, device, each.weights_bytes)
    if owner is None or owner in lost:
        return read_s  # computed again wherever it goes
    if not (size := rows_bytes(rated, block, device, held)):
        return read_s
    if lost:
        chunks = sum(-(-tokens // rated.shapes.chunk) for tokens in held)
        return read_s + chunks * each.chunk_s * rated.slowness(device)
    return read_s + size / rated.link(owner, device).bytes_per_s
