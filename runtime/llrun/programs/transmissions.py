"""The transmission map: which tensor goes from which device to which, once to each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llrun.programs.layouts import layout_of
from llrun.schema import GraphRecord, Rows, StageRecord, TransmissionKind, TransmissionRecord

Hop = tuple[int, int]


@dataclass(frozen=True)
class Crossing:
    """A tensor between blocks: the one that makes it, those that use it (ascending), and the bytes of one row.

    `rows`: `last` if no user needs more of a prompt than its newest row.
    """

    tensor: str
    producer: int
    consumers: tuple[int, ...]
    row_bytes: int
    rows: Rows


def crossings(graph: GraphRecord) -> tuple[Crossing, ...]:
    """Every tensor that one block makes and others use, in the order of production.

    Neither what a device computes from positions nor token ids nor logits: the first is never sent, the others stay on
    the head. Raises RunError R207 for a tensor that cannot be sent.
    """
    users: dict[int, list[int]] = {}
    for block in graph.blocks:
        for tensor in dict.fromkeys(block.inputs):
            users.setdefault(tensor, []).append(block.id)
    described = {tensor.id: tensor for tensor in graph.tensors}
    newest = {block.id for block in graph.blocks if block.rows == Rows.LAST}
    return tuple(
        Crossing(
            described[tensor].name,
            block.id,
            tuple(users[tensor]),
            layout_of(described[tensor]).row_bytes,
            Rows.LAST if newest.issuperset(users[tensor]) else Rows.ALL,
        )
        for block in graph.blocks
        for tensor in block.outputs
        if tensor in users
    )


def deliveries(
    producer: int, consumers: Iterable[int], stage_of: Mapping[int, int], leads: Sequence[str]
) -> tuple[tuple[str, Hop], ...]:
    """To whom a tensor travels, once to each device other than the producer's, and on which hop.

    `stage_of`: [block] the number of its stage; `leads`: the device of each stage. A hop is (stage that it leaves,
    first stage that uses it on the device).
    """
    start = stage_of[producer]
    reached: dict[str, int] = {}
    for stage in sorted({stage_of[block] for block in consumers}):
        reached.setdefault(leads[stage], stage)
    return tuple((to, (start, stage)) for to, stage in reached.items() if to != leads[start])


def kind_of(hop: Hop) -> TransmissionKind:
    """`sequential` to the next stage, `residual` past it."""
    return TransmissionKind.SEQUENTIAL if hop[1] == hop[0] + 1 else TransmissionKind.RESIDUAL


def transmissions(graph: GraphRecord, stages: Sequence[StageRecord]) -> tuple[TransmissionRecord, ...]:
    """The map of `stages`, in order of producer, hop and tensor; bytes are those of one decoded token."""
    stage_of = {block: number for number, stage in enumerate(stages) for block in range(*stage.blocks)}
    leads = [stage.lead for stage in stages]
    sent = [
        (each.producer, hop, each.tensor, to, each.row_bytes)
        for each in crossings(graph)
        for to, hop in deliveries(each.producer, each.consumers, stage_of, leads)
    ]
    return tuple(
        TransmissionRecord(
            tensor=tensor,
            kind=kind_of(hop),
            source=leads[hop[0]],
            destination=to,
            bytes=row_bytes,
        )
        for _, hop, tensor, to, row_bytes in sorted(sent)
    )
