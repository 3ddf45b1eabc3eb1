"""The transmission map: which tensor goes from which device to which, once to each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from llrun.programs.groups import stage_sums
from llrun.programs.layouts import layout_of
from llrun.schema import GraphRecord, Rows, StageRecord, TransmissionKind, TransmissionRecord, WireFormat

Hop = tuple[int, int]


@dataclass(frozen=True)
class Crossing:
    """A tensor between blocks: the one that makes it, those that use it (ascending), the bytes of one row on the wire,
    and `held_bytes`, those of it on a device that sends or receives it: as it is computed with and as it travels.

    `rows`: `last` if no user needs more of a prompt than its newest row.
    """

    tensor: str
    producer: int
    consumers: tuple[int, ...]
    row_bytes: int
    held_bytes: int
    rows: Rows
    wire: WireFormat = WireFormat.F32


def crossings(graph: GraphRecord) -> tuple[Crossing, ...]:
    """Every tensor that one block makes and others use, in the order of production.

    Neither what a device computes from positions nor token ids nor logits: the first is never sent, the others stay on
    the head. Raises RunError R207 for a tensor that cannot be sent.
    """
    users: dict[int, list[int]] = {}
    for block in graph.blocks:
        for tensor in dict.fromkeys(block.inputs):
            users.setdefault(tensor, []).append(block.id)
    layouts = {tensor.id: layout_of(tensor) for tensor in graph.tensors}
    newest = {block.id for block in graph.blocks if block.rows == Rows.LAST}
    return tuple(
        Crossing(
            layouts[tensor].name,
            block.id,
            tuple(users[tensor]),
            layouts[tensor].wire_bytes,
            layouts[tensor].held_bytes,
            Rows.LAST if newest.issuperset(users[tensor]) else Rows.ALL,
            layouts[tensor].wire,
        )
        for block in graph.blocks
        for tensor in block.outputs
        if tensor in users
    )


def deliveries(
    producer: int, consumers: Iterable[int], stage_of: Mapping[int, int], devices: Sequence[Sequence[str]]
) -> tuple[tuple[str, Hop], ...]:
    """To whom a tensor travels, once to each device that does not make it, and on which hop.

    `stage_of`: [block] the number of its stage; `devices`: those of each stage, of a group several, who all use what
    comes to it. A group's lead sends: the others that use what it makes make it too. A hop is (stage that it leaves,
    first stage that uses it on the device).
    """
    start = stage_of[producer]
    reached: dict[str, int] = {}
    for stage in sorted({stage_of[block] for block in consumers}):
        for name in devices[stage]:
            reached.setdefault(name, stage)
    return tuple((to, (start, stage)) for to, stage in reached.items() if to not in devices[start])


def kind_of(hop: Hop) -> TransmissionKind:
    """`sequential` to the next stage, `residual` past it."""
    return TransmissionKind.SEQUENTIAL if hop[1] == hop[0] + 1 else TransmissionKind.RESIDUAL


def transmissions(graph: GraphRecord, stages: Sequence[StageRecord]) -> tuple[TransmissionRecord, ...]:
    """The map of `stages`, in order of producer, hop and tensor; bytes are those of one decoded token.

    What the devices of a group tell each other about a block comes before what it makes, in the order of its sending.
    """
    stage_of = {block: number for number, stage in enumerate(stages) for block in range(*stage.blocks)}
    devices = [stage.devices for stage in stages]
    sent = [
        (each.producer, hop, each.tensor, to, each)
        for each in crossings(graph)
        for to, hop in deliveries(each.producer, each.consumers, stage_of, devices)
    ]
    found = [*_sums(graph, stages)]
    for producer, hop, tensor, to, each in sorted(sent, key=lambda item: item[:4]):
        record = TransmissionRecord(
            tensor=tensor,
            kind=kind_of(hop),
            source=stages[hop[0]].lead,
            destination=to,
            bytes=each.row_bytes,
            wire=each.wire,
        )
        found.append((producer, record))
    return tuple(record for _, record in sorted(found, key=lambda pair: pair[0]))


def _sums(graph: GraphRecord, stages: Sequence[StageRecord]) -> Iterator[tuple[int, TransmissionRecord]]:
    layouts = {tensor.id: layout_of(tensor) for tensor in graph.tensors}
    for number, stage in enumerate(stages):
        for block, (tensor, source, to) in stage_sums(graph, stages, number):
            yield (
                block,
                TransmissionRecord(
                    tensor=layouts[tensor].name,
                    kind=TransmissionKind.SUM,
                    source=stage.devices[source],
                    destination=stage.devices[to],
                    bytes=layouts[tensor].wire_bytes,
                    wire=layouts[tensor].wire,
                ),
            )
