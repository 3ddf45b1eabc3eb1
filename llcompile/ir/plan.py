"""What the planner decides: stages, memory, figures, and the transmission map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class BlockCost:
    """Cost of one block at one quantisation and context; what the planner sees of the model.

    `activation_bytes`: peak of a prefill chunk. `decode_bytes`: weights and cache read for one token at full
    context. `prefill_flops`, `prefill_bytes`: one chunk of prompt.
    """

    block: int
    weights_bytes: int
    cache_bytes: int
    activation_bytes: int
    decode_flops: float
    decode_bytes: float
    prefill_flops: float
    prefill_bytes: float


@dataclass(frozen=True)
class Flow:
    """A tensor between blocks as the planner sees it: who makes it, who uses it, its bytes for one decoded token
    and for one prefill chunk."""

    tensor: str
    producer: int
    consumers: tuple[int, ...]
    decode_bytes: int
    prefill_bytes: int


@dataclass(frozen=True)
class Stage:
    """Blocks start..stop-1 on `devices` (one, until groups exist) with `shares` summing to 1. `window` is the
    number of blocks in memory at once; 0: all."""

    devices: tuple[str, ...]
    shares: tuple[float, ...]
    start: int
    stop: int
    window: int = 0


@dataclass(frozen=True)
class DeviceLoad:
    weights_bytes: int
    kv_bytes: int
    peak_bytes: int
    memory_bytes: int
    compute_s: float


@dataclass(frozen=True)
class Transmission:
    """One message a step: `kind` is sequential (to the next stage) or residual (it skips stages). Bytes: one token."""

    tensor: str
    kind: str
    source: str
    destination: str
    bytes: int


@dataclass(frozen=True)
class Plan:
    """`status`: optimal | feasible. `problem` is the solved MIP in MPS text, so that it can be solved again."""

    status: str
    objective: float
    bound: float
    gap: float
    solve_s: float
    seed: int
    ttft_s: float
    tpot_s: float
    quant: str
    context: int
    chunk: int
    stages: tuple[Stage, ...]
    devices: Mapping[str, DeviceLoad]
    unused: Mapping[str, str]
    transmissions: tuple[Transmission, ...]
    problem: str

    def device_of(self, block: int) -> str:
        return next(s.devices[0] for s in self.stages if s.start <= block < s.stop)
