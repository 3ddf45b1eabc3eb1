"""What a balancing function sees: the devices, links, stages and sequences of one moment, frozen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

from llrun.programs.placement import Cost, Placement, Rates
from llrun.schema import Envelope, EnvelopeDevice, StageRecord


class EventKind(StrEnum):
    """Why the function is called: a device became much slower or faster than it was, one was lost, one joined, or steps
    were made (`step`, several times a second)."""

    SLOW = "slow"
    LOST = "lost"
    JOINED = "joined"
    STEP = "step"


@dataclass(frozen=True)
class Event:
    """`device`: whom it is about; None for a step."""

    kind: EventKind
    device: str | None = None


@dataclass(frozen=True)
class DeviceView:
    """`slowness`: measured seconds over those that the plan was made with. `free_memory_bytes`: 0 where it is not
    known. `envelope`: what the plan knows of the device."""

    name: str
    alive: bool
    slowness: float
    free_memory_bytes: int
    envelope: EnvelopeDevice

    @property
    def memory_bytes(self) -> int:
        return self.envelope.memory_bytes

    @cached_property
    def blocks(self) -> tuple[int, ...]:
        """Those that it could run."""
        return tuple(block.id for block in self.envelope.blocks)

    @cached_property
    def block_s(self) -> Mapping[int, float]:
        """Seconds of each block for a token, measured."""
        return {block.id: block.decode_s * self.slowness for block in self.envelope.blocks}


@dataclass(frozen=True)
class LinkView:
    """`measured`: whether the figures are of the traffic itself, or those of the plan."""

    source: str
    destination: str
    latency_s: float
    bytes_per_s: float
    measured: bool


@dataclass(frozen=True)
class SequenceView:
    """`tokens`: in its caches. `to_come`: that are still to be produced, at most."""

    tokens: int
    to_come: int


@dataclass(frozen=True)
class View:
    """One moment of a session. `stages`: what runs now; `envelope`: what could."""

    devices: Mapping[str, DeviceView]
    stages: tuple[StageRecord, ...]
    sequences: tuple[SequenceView, ...]
    event: Event
    envelope: Envelope
    placement: Placement

    @cached_property
    def links(self) -> tuple[LinkView, ...]:
        """Every way from a device to another."""
        found = []
        for planned in self.envelope.links:
            way = planned.source, planned.destination
            rate = self.placement.link(*way)
            measured = way in self.placement.rates.links
            found.append(LinkView(*way, rate.latency_s, rate.bytes_per_s, measured))
        return tuple(found)

    @property
    def to_come(self) -> int:
        """Token times until all open sequences are done, at most: theirs pass side by side, so the longest counts."""
        return max((each.to_come for each in self.sequences), default=0)

    def predict(self, stages: Sequence[StageRecord]) -> float:
        """TPOT in seconds of other stages, at the measured rates."""
        return self.placement.predict(tuple(stages))

    def cost(self, stages: Sequence[StageRecord]) -> Cost:
        """Seconds and bytes of the change to other stages."""
        return self.placement.cost(self.stages, tuple(stages), [each.tokens for each in self.sequences])

    def faults(self, stages: Sequence[StageRecord]) -> list[str]:
        """Why there cannot be these stages, in words; empty when there can."""
        return self.placement.faults(tuple(stages), self.stages)

    def best(self) -> tuple[StageRecord, ...] | None:
        """The stages that produce the tokens to come soonest, the change to them included."""
        held = [each.tokens for each in self.sequences]
        return self.placement.best(self.stages, held, float(self.to_come))

    def without(self, *names: str) -> View:
        """The view if these devices could not be used; the head always is. Raises ValueError for one that is none."""
        self._check(names)
        gone = {*names} - {self.placement.head}
        devices = {
            name: replace(each, alive=each.alive and name not in gone) for name, each in self.devices.items()
        }
        alive = frozenset(name for name, each in devices.items() if each.alive)
        return replace(self, devices=devices, placement=replace(self.placement, alive=alive))

    def supposing(self, slowness: Mapping[str, float]) -> View:
        """The view if these devices were as slow as that. Raises ValueError for one that is none."""
        self._check(slowness)
        known = self.placement.rates
        placement = replace(self.placement, rates=Rates({**known.slowness, **slowness}, known.links))
        supposed = {name: replace(self.devices[name], slowness=slow) for name, slow in slowness.items()}
        return replace(self, placement=placement, devices={**self.devices, **supposed})

    def _check(self, names: Iterable[str]) -> None:
        for name in sorted({*names} - self.devices.keys()):
            raise ValueError(
                f"{name} is not a device of this bundle; it has {', '.join(sorted(self.devices))}"
            )


def view_of(
    placement: Placement,
    stages: tuple[StageRecord, ...],
    sequences: tuple[SequenceView, ...],
    event: Event,
    free_memory: Mapping[str, int],
) -> View:
    """The view of a moment. `placement` knows who is alive, and the measured rates."""
    devices = {
        name: DeviceView(
            name, placement.usable(name), placement.slowness(name), free_memory.get(name, 0), device
        )
        for name, device in placement.envelope.devices.items()
    }
    return View(devices, stages, sequences, event, placement.envelope, placement)
