"""The transmission map: which tensor goes from which device to which, once to each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llcompile.ir.plan import Flow, Stage, Transmission
from llrun.programs.transmissions import deliveries, kind_of
from llrun.schema import TransmissionKind


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
    """One message a flow and consuming device other than the producer's, in order of producer, hop and tensor."""
    index = {block: i for i, stage in enumerate(stages) for block in stage.blocks}
    leads = [stage.lead for stage in stages]
    sent = [
        Message(flow, leads[hop[0]], to, hop)
        for flow in flows
        for to, hop in deliveries(flow.producer, flow.consumers, index, leads)
    ]
    return tuple(sorted(sent, key=lambda m: (m.flow.producer, m.hop, m.flow.tensor)))


def transmissions(stages: Sequence[Stage], flows: Sequence[Flow]) -> tuple[Transmission, ...]:
    """The map as the plan records it; bytes are those of one decoded token."""
    return tuple(
        Transmission(
            m.flow.tensor,
            m.kind,
            m.source,
            m.destination,
            m.flow.decode_bytes,
        )
        for m in messages(stages, flows)
    )
