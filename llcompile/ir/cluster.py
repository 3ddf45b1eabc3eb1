"""Devices and the links between them, every figure filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from llrun.schema.values import Isa


@dataclass(frozen=True)
class Processor:
    """What code generation needs to know of a target: LLVM triple, cpu, features, and the kernels' instruction set."""

    mtriple: str
    mcpu: str
    mattr: tuple[str, ...]
    isa: Isa


@dataclass(frozen=True)
class Watts:
    """What a device draws while it computes, and while it waits."""

    busy: float
    idle: float


@dataclass(frozen=True)
class Device:
    """A device with its figures: effective rates, not peaks. Units as the names say.

    `disk_bytes`: what its slice may take, None: as much as it likes. `standby`: it holds blocks and runs none at first.
    `other_bytes`: what its slice has beside libraries and whole blocks: the tokenizer's files, pieces of blocks.
    """

    name: str
    target: str
    address: str
    memory_bytes: int
    threads: int
    compute_flops: float
    memory_bytes_per_s: float
    disk_bytes_per_s: float
    runtime_bytes: int
    processor: Processor
    disk_bytes: int | None = None
    standby: bool = False
    watts: Watts | None = None
    battery_joules: float | None = None
    other_bytes: int = 0


@dataclass(frozen=True)
class Link:
    bytes_per_s: float
    latency_s: float

    def seconds(self, size_bytes: float) -> float:
        return self.latency_s + size_bytes / self.bytes_per_s


@dataclass(frozen=True)
class Cluster:
    """`links` holds both directions of every pair that differs from `default_link`."""

    head: str
    devices: tuple[Device, ...]
    default_link: Link
    links: Mapping[tuple[str, str], Link]

    def device(self, name: str) -> Device:
        return next(d for d in self.devices if d.name == name)

    def link(self, source: str, destination: str) -> Link:
        return self.links.get((source, destination), self.default_link)

    def standing_by(self) -> tuple[Device, ...]:
        """The devices that hold blocks and run none at first."""
        return tuple(d for d in self.devices if d.standby)

    def at_work(self) -> Cluster:
        """The cluster without those."""
        return replace(self, devices=tuple(d for d in self.devices if not d.standby))
