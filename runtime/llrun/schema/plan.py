"""What people and their scripts read of a plan."""

from __future__ import annotations

from llrun.schema.base import Positive, Size, Strict
from llrun.schema.values import PlanStatus, Precision, Shapes, TransmissionKind


class StageRecord(Strict, frozen=True):
    devices: tuple[str, ...]
    shares: tuple[float, ...]
    blocks: tuple[Size, Size]
    window: Size


class LoadRecord(Strict, frozen=True):
    weights_bytes: Size
    kv_bytes: Size
    peak_bytes: Size
    memory_bytes: Size
    compute_s: float


class TransmissionRecord(Strict, frozen=True, rename={"source": "from", "destination": "to"}):
    tensor: str
    kind: TransmissionKind
    source: str
    destination: str
    bytes: Size


class BlockRecord(Strict, frozen=True):
    id: Size
    template: str
    ops: tuple[str, ...]
    weights_bytes: Size
    decode_flops: float


class PlanRecord(Strict, frozen=True):
    """The plan as `llcompile plan --json` prints it.

    `prompt_tokens`, `new_tokens`, `sequences`: the request and the number of sequences that it was made for.
    `ttft_s` is for that prompt: `chunk_s`, a chunk's way through all devices, and `slowest_chunk_s`, the slowest
    device or link, for each chunk after the first. `tpot_s` is with a full context. No wall-clock figure is in a
    bundle: `solve_s` is 0 there.
    """

    status: PlanStatus
    objective: float
    bound: float
    gap: float
    solve_s: float
    seed: int
    ttft_s: float
    tpot_s: float
    precision: Precision
    shapes: Shapes
    prompt_tokens: Positive
    new_tokens: Positive
    sequences: Positive
    chunk_s: float
    slowest_chunk_s: float
    stages: tuple[StageRecord, ...]
    devices: dict[str, LoadRecord]
    unused: dict[str, str]
    transmissions: tuple[TransmissionRecord, ...]
    blocks: tuple[BlockRecord, ...]
