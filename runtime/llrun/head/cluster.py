"""The devices of a session as its head sees them: who is there, what runs where, and under which epoch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from llrun.engine.part import Part
from llrun.head.controls import Controls
from llrun.head.monitor import Monitor
from llrun.head.progress import Progress
from llrun.head.replay import Rewind, places_of
from llrun.programs.groups import block_of
from llrun.programs.placement import Placement
from llrun.programs.portions import Pieces
from llrun.programs.rated import devices_of, owned
from llrun.programs.segments import split
from llrun.programs.transmissions import transmissions
from llrun.programs.write import idle_program, write_programs
from llrun.schema import DeviceProgram, Slice, StageRecord
from llrun.wire.messages import Message, Prepare, Switch

NOWHERE = "0.0.0.0:0"  # the head listens nowhere


@dataclass
class Cluster:
    """`alive`: the devices that take part, the head among them. `stages`, `epoch`: what runs. `barred`: [device]
    blocks that it turned out not to be able to run. `attempt`: the newest preparing; answers to older ones are void."""

    record: Slice
    controls: Controls
    own: Part
    monitor: Monitor
    alive: set[str]
    stages: tuple[StageRecord, ...]
    epoch: int
    barred: dict[str, set[int]] = field(default_factory=dict)
    attempt: int = 0
    _pieces: tuple[int, Pieces] | None = None  # those of an epoch, at the rates of its first prompt

    @property
    def head(self) -> str:
        return self.record.head

    @property
    def addresses(self) -> dict[str, str]:
        """Where each device listens, as workers are told."""
        return {**self.controls.addresses, self.head: NOWHERE}

    @property
    def cached(self) -> Mapping[str, frozenset[int]]:
        """The blocks of each device that have caches."""
        return {
            name: frozenset(block.id for block in device.blocks if block.cache_bytes)
            for name, device in self.record.envelope.devices.items()
        }

    def tell(self, device: str, message: Message) -> None:
        if device == self.head:
            self.own.tell(message)
        else:
            self.controls.tell(device, message)

    def tell_all(self, message: Message) -> None:
        for device in sorted(self.alive):
            self.tell(device, message)

    def placement(self, alive: Iterable[str] | None = None) -> Placement:
        """The envelope at the rates that are measured; `alive`: those that may be used, None for all that are there."""
        placement = Placement.of(
            self.record, self.monitor.rates(), frozenset(self.alive if alive is None else alive)
        )
        return without(placement, self.barred)

    def portion(self, tokens: int) -> int:
        """Rows of each piece in which so many tokens of a prompt go."""
        if self._pieces is None or self._pieces[0] != self.epoch:
            self._pieces = self.epoch, Pieces.of(self.placement(), self.stages)
        return self._pieces[1].rows(tokens)

    def runs(self, device: str) -> bool:
        """Whether the device has a stage now."""
        return device in devices_of(self.stages)

    def pieces(self, stages: Sequence[StageRecord], device: str) -> set[int]:
        """The ids of what a device runs of `stages`."""
        return owned(stages, len(self.record.graph.blocks)).get(device, set())

    def blocks_of(self, pieces: Iterable[int]) -> set[int]:
        """The blocks that these ids are of, whole or in part."""
        return {block_of(piece, len(self.record.graph.blocks)) for piece in pieces}

    def prepare(
        self,
        stages: Sequence[StageRecord],
        drop: bool,
        links: Mapping[str, Iterable[str]],
    ) -> None:
        """Tell every device what it is to run in the next epoch. `links`: whom else it has to be connected with."""
        epoch, self.attempt = self.epoch + 1, self.attempt + 1
        for device, program in programs_of(self.record, stages, epoch, self.alive).items():
            peers = tuple(sorted(links.get(device, ())))
            self.tell(device, Prepare(epoch, self.attempt, program, peers, drop))

    def switch(self, stages: Sequence[StageRecord], ways: Sequence[Rewind], progress: Progress) -> None:
        """Take up the stages that were prepared: every device under the next epoch."""
        self.epoch += 1
        self.stages = tuple(stages)
        programs = programs_of(self.record, stages, self.epoch, self.alive)
        for device in sorted(self.alive):
            self.tell(device, Switch(self.epoch, places_of(ways, stages, programs[device])))
        progress.plan(*takers(programs))
        self.monitor.plan(stages, Placement.of(self.record).seconds_of(stages))


def programs_of(
    record: Slice, stages: Sequence[StageRecord], epoch: int, devices: Iterable[str]
) -> dict[str, DeviceProgram]:
    """What each of `devices` runs, those without a stage nothing."""
    written = write_programs(record.graph, stages, transmissions(record.graph, stages), epoch)
    return {name: written.get(name) or idle_program(name, epoch) for name in sorted(devices)}


def takers(programs: Mapping[str, DeviceProgram]) -> tuple[frozenset[str], frozenset[str]]:
    """Devices that take part in a prompt's every chunk, and those that only hear of the last."""
    every, partial = set(), set()
    for device, program in programs.items():
        segments = split(program.instructions)
        if any(not each.waits or each.waits - each.waits_last for each in segments):
            every.add(device)
        elif segments:
            partial.add(device)
    return frozenset(every), frozenset(partial)


def without(placement: Placement, barred: Mapping[str, set[int]]) -> Placement:
    """The placement with blocks that a device cannot run taken from what it holds."""
    if not any(barred.values()):
        return placement
    devices = {
        name: msgspec.structs.replace(
            device, blocks=tuple(b for b in device.blocks if b.id not in barred.get(name, ()))
        )
        for name, device in placement.envelope.devices.items()
    }
    return replace(placement, envelope=msgspec.structs.replace(placement.envelope, devices=devices))
