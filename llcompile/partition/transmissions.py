"""The transmission map: which tensor goes from which device to which, once to each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llcompile.ir.plan import Flow, Stage, Transmission
from llrun.schema import TransmissionKind


@dataclass(frozen=True)
class Message:
    """One tensor on its way to one device. `hop`: (stage it leaves, first stage that consumes it there)."""

    flow: Flow
    source: str
    destination: str
    hop: tuple[int, int]

    @property
    def sequential(self) -> bool:
        return self.hop[1] == self.hop[0] + 1


def messages(stages: Sequence[Stage], flows: Sequence[Flow]) -> tuple[Message, ...]:
    """One message a flow and consuming device other than the producer's, in order of producer, hop and tensor."""
    index = {block: i for i, stage in enumerate(stages) for block in range(stage.start, stage.stop)}
    sent = []
    for flow in flows:
        start = index[flow.producer]
        source = stages[start].lead
        reached = {stages[i].lead: i for i in sorted({index[block] for block in flow.consumers})}
        sent += [Message(flow, source, to, (start, stage)) for to, stage in reached.items() if to != source]
    return tuple(sorted(sent, key=lambda m: (m.flow.producer, m.hop, m.flow.tensor)))


def transmissions(stages: Sequence[Stage], flows: Sequence[Flow]) -> tuple[Transmission, ...]:
    """The map as the plan records it; bytes are those of one decoded token."""
    return tuple(
        Transmission(
            m.flow.tensor,
            TransmissionKind.SEQUENTIAL if m.sequential else TransmissionKind.RESIDUAL,
            m.source,
            m.destination,
            m.flow.decode_bytes,
        )
        for m in messages(stages, flows)
    )
