"""Devices and the links between them, every figure filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llrun.schema.values import Isa


@dataclass(frozen=True)
class Processor:
    """What code generation needs to know of a target: LLVM triple, cpu, features, and the kernels' instruction set."""

    mtriple: str
    mcpu: str
    mattr: tuple[str, ...]
    isa: Isa


@dataclass(frozen=True)
class Device:
    """A device with its figures: effective rates, not peaks. Units as the names say."""

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
