"""What a session has measured, as it is told to people and their scripts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class RunReading:
    """Blocks `start` up to `stop`, which a device runs as one: `compute_s` a token."""

    blocks: tuple[int, int]
    compute_s: float


@dataclass(frozen=True)
class DeviceReading:
    """Medians of a device's newest tokens under the present stages.

    `tokens`: how many it has computed there, those of one pass being one. `compute_s`, `wait_s`, `send_s`: seconds a
    token in computing, idle before it, and in handing on what was made; None before the first. `runs`: its `compute_s`
    by block run. `slowness`: measured seconds over those that the plan was made with, None before it has computed
    enough. `free_memory_bytes`: what its system leaves now, None where that does not say.
    """

    tokens: int
    compute_s: float | None
    wait_s: float | None
    send_s: float | None
    runs: tuple[RunReading, ...]
    slowness: float | None
    free_memory_bytes: int | None


@dataclass(frozen=True)
class LinkReading:
    """A connection one way, medians of what its own traffic showed lately: half the shortest round trip in seconds, and
    bytes a second; None what it has not shown, as the rate where there was too little to send."""

    source: str
    destination: str
    latency_s: float | None
    bytes_per_s: float | None


@dataclass(frozen=True)
class Readings:
    """`devices`: those that take part, by name. `links`: by the names of their ends."""

    devices: Mapping[str, DeviceReading]
    links: tuple[LinkReading, ...]
