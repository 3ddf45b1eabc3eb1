"""The transmission map: which tensor goes from which device to which, once to each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import assert_never

from llcompile.ir.plan import Flow, ShardCosts, Stage, Transmission
from llcompile.ir.shard import partial_name, sum_name
from llrun.programs.transmissions import kind_of
from llrun.schema import AllReduceKind, TransmissionKind

Way = tuple[str, int, int]  # what is sent, the rank that sends it, the rank that receives it


@dataclass(frozen=True)
class Message:
    """One tensor on its way to one device. `hop`: (stage it leaves, first stage that consumes it there)."""

    flow: Flow
    source: str
    destination: str
    hop: tuple[int, int]

    @property
    def kind(self) -> TransmissionKind:
        return kind_of(self.hop)

    @property
    def sequential(self) -> bool:
        return self.kind is TransmissionKind.SEQUENTIAL


def messages(stages: Sequence[Stage], flows: Sequence[Flow]) -> tuple[Message, ...]:
    """One message a flow and consuming device that does not make it itself, in order of producer, hop and tensor.

    All devices of a group make what its blocks make, as each needs it; the lead sends it on.
    """
    index = {block: i for i, stage in enumerate(stages) for block in stage.blocks}
    sent = chain.from_iterable(_sent(flow, stages, index) for flow in flows)
    return tuple(sorted(sent, key=lambda m: (m.flow.producer, m.hop, m.flow.tensor, m.destination)))


def _sent(flow: Flow, stages: Sequence[Stage], index: Mapping[int, int]) -> Iterator[Message]:
    start = index[flow.producer]
    there = set(stages[start].devices)
    for number in sorted({index[block] for block in flow.consumers}):
        for device in stages[number].devices:
            if device not in there:
                yield Message(flow, stages[start].lead, device, (start, number))
        there.update(stages[number].devices)


def transmissions(
    stages: Sequence[Stage], flows: Sequence[Flow], pieces: ShardCosts | None = None
) -> tuple[Transmission, ...]:
    """The map as the plan records it: for each block what a group's devices send of its sum, then what it makes; bytes
    are those of one decoded token."""
    sent = [
        (
            m.flow.producer,
            Transmission(m.flow.tensor, m.kind, m.source, m.destination, m.flow.decode_bytes, m.flow.wire),
        )
        for m in messages(stages, flows)
    ]
    summed = chain.from_iterable(_summed(stages, number, flows, pieces) for number in range(len(stages)))
    return tuple(each for _, each in sorted((*summed, *sent), key=lambda pair: pair[0]))


def _summed(
    stages: Sequence[Stage], number: int, flows: Sequence[Flow], pieces: ShardCosts | None
) -> Iterator[tuple[int, Transmission]]:
    """Of each block of a group what its devices send each other."""
    stage = stages[number]
    if not stage.is_group or pieces is None:
        return
    cut, everyone = pieces(stage.blocks, stage.shares, stage.parts), range(len(stage.devices))
    for block in stage.blocks:
        ends = finishers(stages, number, flows) if block == stage.stop - 1 else everyone
        size = cut[block].partial_decode_bytes
        for name, source, to in sum_ways(stage, block, ends):
            sent = stage.devices[source], stage.devices[to]
            yield block, Transmission(name, TransmissionKind.SUM, *sent, size, cut[block].wire)


def finishers(stages: Sequence[Stage], number: int, flows: Sequence[Flow]) -> tuple[int, ...]:
    """The ranks of a group that need the sum of its last block: the lead, and those that use later what it makes."""
    stage = stages[number]
    used = {b for flow in flows if flow.producer == stage.stop - 1 for b in flow.consumers}
    users = {name for later in stages[number + 1 :] if used & {*later.blocks} for name in later.devices}
    return tuple(rank for rank, name in enumerate(stage.devices) if not rank or name in users)


def sum_ways(stage: Stage, block: int, ends: Sequence[int]) -> Iterator[Way]:
    """The messages of the all-reduce of one block of a group, whose sum the ranks `ends` need."""
    ranks, kind = range(len(stage.devices)), stage.all_reduce or AllReduceKind.DIRECT
    match kind:
        case AllReduceKind.STAR:
            yield from ((partial_name(block, rank), rank, stage.root) for rank in ranks if rank != stage.root)
            yield from ((sum_name(block, 0), stage.root, rank) for rank in ends if rank != stage.root)
        case AllReduceKind.DIRECT:
            yield from ((partial_name(block, a), a, b) for a in ranks for b in ends if a != b)
        case AllReduceKind.RING:
            running = [partial_name(block, 0), *(sum_name(block, rank - 1) for rank in ranks[1:])]
            yield from ((running[a], a, b) for a, b in pairwise(ranks))
            around = [ranks[-1], *(rank for rank in ends if rank != ranks[-1])]
            yield from ((running[-1], a, b) for a, b in pairwise(around))
        case _:
            assert_never(kind)
