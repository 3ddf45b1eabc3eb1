"""What people and their scripts read of a plan."""

from __future__ import annotations

from llrun.schema.base import Positive, Size, Strict
from llrun.schema.values import (
    AllReduceKind,
    MoveEvent,
    PlanStatus,
    Precision,
    Shapes,
    TransmissionKind,
    WireFormat,
)


class StageRecord(Strict, frozen=True, omit_defaults=True):
    """Blocks start..stop-1 (`blocks`) on `devices`, in the order of their ranks, with `shares` that sum to 1. `window`:
    blocks in memory at once, 0: all. Of several devices, a group, `all_reduce` says how they sum; `root`: the rank that
    sums for a star; `division`: which of the ways to cut its blocks it is that devices hold, 0 the plan's."""

    devices: tuple[str, ...]
    shares: tuple[float, ...]
    blocks: tuple[Size, Size]
    window: Size
    all_reduce: AllReduceKind | None = None
    root: Size = 0
    division: Size = 0

    @classmethod
    def on(cls, device: str, start: int, stop: int) -> StageRecord:
        """Blocks start..stop-1 on one device."""
        return cls(devices=(device,), shares=(1.0,), blocks=(start, stop), window=0)

    @property
    def lead(self) -> str:
        """The device that receives for the stage and sends what it makes."""
        return self.devices[0]


class LoadRecord(Strict, frozen=True):
    """What a device takes and does. `window`: blocks in memory at once, the model's ends aside; 0: all. `rounds`: runs
    of blocks that it has, of a token."""

    weights_bytes: Size
    kv_bytes: Size
    peak_bytes: Size
    memory_bytes: Size
    compute_s: float
    window: Size = 0
    rounds: Positive = 1


class TransmissionRecord(Strict, frozen=True, rename={"source": "from", "destination": "to"}):
    """A tensor that leaves a device, its `bytes` for one decoded token, in the format `wire`."""

    tensor: str
    kind: TransmissionKind
    source: str
    destination: str
    bytes: Size
    wire: WireFormat = WireFormat.F32


class MoveRecord(Strict, frozen=True):
    """What would be done when `event` happens to `device`: `stages`, their TPOT, and the seconds until the next token.
    Where nothing can be done (`possible` false) `reason` says what would make it so."""

    event: MoveEvent
    device: str
    possible: bool
    tpot_s: float | None
    change_s: float | None
    stages: tuple[StageRecord, ...]
    reason: str


class BlockRecord(Strict, frozen=True):
    """`bits`: of a weight of its matrices, on the average, scales included; 0 without any. `divergence`: what rounding
    them was found to cost the output, nats; None: nobody has looked."""

    id: Size
    template: str
    ops: tuple[str, ...]
    weights_bytes: Size
    decode_flops: float
    bits: float
    divergence: float | None = None


class PlanRecord(Strict, frozen=True):
    """The plan as `llcompile plan --json` prints it.

    `prompt_tokens`, `new_tokens`, `sequences`: the request and the number of sequences that it was made for. `ttft_s`
    is for that prompt in pieces of `portion` rows (None: of a chunk): `chunk_s`, a piece's way through all devices,
    and `slowest_chunk_s`, the slowest device or link, for each after the first. `tpot_s` is with a full context. No
    wall-clock figure is in a bundle: `solve_s` is 0 there. `spares`: blocks that a device holds and does not run.
    `envelope`: what would be done for each device that is lost or slow. `notes`: what was looked at and what was not,
    a sentence each. `divisions`: other ways to cut the blocks of a group, of which devices hold the pieces.
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
    spares: dict[str, tuple[Size, ...]]
    envelope: tuple[MoveRecord, ...]
    notes: tuple[str, ...] = ()
    portion: Positive | None = None
    divisions: tuple[StageRecord, ...] = ()
