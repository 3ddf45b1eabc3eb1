"""What the planner decides: stages, memory, figures, and the transmission map."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from llrun.schema.values import (
    AllReduceKind,
    MoveEvent,
    PlanStatus,
    Precision,
    Shapes,
    TransmissionKind,
    WireFormat,
)


@dataclass(frozen=True)
class BlockCost:
    """Cost of one block at one quantisation and context; what the planner sees of the model.

    `activation_bytes`: peak of a prefill chunk. `decode_bytes`: weights and cache read for one token at full
    context. `prefill_flops`, `prefill_bytes`: a prompt's portion of a chunk. `weights_bytes` are those in memory; of
    them `streamed_bytes` come from disk for every token and every chunk. `table_bytes`: others, which stay on disk, and
    of which rows are read. `last_row_only`: it runs for a prompt's last row alone, not with every chunk. `of_output`:
    it is one of several that make the logits, all of them the head's.
    """

    block: int
    weights_bytes: int
    cache_bytes: int
    activation_bytes: int
    decode_flops: float
    decode_bytes: float
    prefill_flops: float
    prefill_bytes: float
    streamed_bytes: int = 0
    table_bytes: int = 0
    last_row_only: bool = False
    of_output: bool = False


def output_start(costs: Sequence[BlockCost]) -> int:
    """The first of the blocks that make the logits: the last one, or the first of several."""
    return next((number for number, cost in enumerate(costs) if cost.of_output), len(costs) - 1)


@dataclass(frozen=True)
class PieceCosts:
    """Costs of one block cut for a group: its shard and its tail, by rank. `partial_decode_bytes`,
    `partial_prefill_bytes`: of what a shard makes for the sum, for one token and for a prompt's portion, on the wire in
    the format `wire`; `partial_held_bytes` of a chunk on a device, as Flow.held_bytes."""

    shards: tuple[BlockCost, ...]
    tails: tuple[BlockCost, ...]
    partial_decode_bytes: int
    partial_prefill_bytes: int
    wire: WireFormat = WireFormat.F32
    partial_held_bytes: int | None = None

    @property
    def last_row_only(self) -> bool:
        """Whether the block runs for a prompt's last row alone."""
        return self.tails[0].last_row_only

    @property
    def buffer_bytes(self) -> int:
        """Bytes of a buffer for a chunk of a part."""
        return self.partial_prefill_bytes if self.partial_held_bytes is None else self.partial_held_bytes


# Blocks, shares by rank, and how many parts a tail takes (all of a direct exchange, else one: the sum) to the costs of
# their pieces. A block that cannot be cut so is left out.
ShardCosts = Callable[[Sequence[int], tuple[float, ...], int], Mapping[int, PieceCosts]]


@dataclass(frozen=True)
class Flow:
    """A tensor between blocks as the planner sees it: who makes it, who uses it, its bytes on the wire for one decoded
    token and for a prompt's portion of a chunk, and its format there. `held_bytes`: of a chunk on a device that sends
    or receives it, as it is computed with and as it travels; None: as it travels."""

    tensor: str
    producer: int
    consumers: tuple[int, ...]
    decode_bytes: int
    prefill_bytes: int
    wire: WireFormat = WireFormat.F32
    held_bytes: int | None = None

    @property
    def buffer_bytes(self) -> int:
        """Bytes of a buffer for a chunk of it."""
        return self.prefill_bytes if self.held_bytes is None else self.held_bytes


@dataclass(frozen=True)
class Stage:
    """Blocks start..stop-1 on `devices`, in the order of their ranks, with `shares` summing to 1.

    `window` is the number of blocks in memory at once; 0: all. Of several devices, a group, `all_reduce` says how they
    sum, `root` the rank that sums for a star, and `division` which of the ways to cut its blocks it is that devices
    hold: 0 the plan's own.
    """

    devices: tuple[str, ...]
    shares: tuple[float, ...]
    start: int
    stop: int
    window: int = 0
    all_reduce: AllReduceKind | None = None
    root: int = 0
    division: int = 0

    @classmethod
    def on(cls, device: str, start: int, stop: int) -> Stage:
        """Blocks start..stop-1 on one device."""
        return cls((device,), (1.0,), start, stop)

    @property
    def lead(self) -> str:
        """The device that receives for the stage and sends what it makes."""
        return self.devices[0]

    @property
    def is_group(self) -> bool:
        return len(self.devices) > 1

    @property
    def parts(self) -> int:
        """How many parts a tail takes: of a direct exchange all, else one, the sum."""
        return len(self.devices) if self.all_reduce is AllReduceKind.DIRECT else 1

    @property
    def blocks(self) -> range:
        return range(self.start, self.stop)


@dataclass(frozen=True)
class DeviceLoad:
    weights_bytes: int
    kv_bytes: int
    peak_bytes: int
    memory_bytes: int
    compute_s: float


@dataclass(frozen=True)
class Transmission:
    """One message a step; `bytes` are those of one token, in the format `wire`."""

    tensor: str
    kind: TransmissionKind
    source: str
    destination: str
    bytes: int
    wire: WireFormat = WireFormat.F32


@dataclass(frozen=True)
class Move:
    """What would be done when `event` happens to `device`: `stages`, their TPOT, and the seconds of the change.

    Where nothing can be done (`possible` False) `reason` says what would make it so.
    """

    event: MoveEvent
    device: str
    possible: bool
    tpot_s: float | None
    change_s: float | None
    stages: tuple[Stage, ...]
    reason: str


@dataclass(frozen=True)
class Plan:
    """The stages, what they cost, and what is proven of them.

    Seconds: `ttft_s` to the first token of a prompt of `prompt_tokens`, `tpot_s` a further token with a full context
    cached, `chunk_s` a piece of the prompt from end to end, `slowest_chunk_s` each further one in the slowest device
    or link; a piece is of `portion` rows, None: a chunk. The objective was for `prompt_tokens` and `new_tokens`
    (latency), or `sequences` at once (throughput). `problem` is the solved MIP in MPS text, so that it can be solved
    again; `spare_problem` that which chose `spares`, the blocks that devices hold and do not run. `divisions`: other
    ways to cut a group's blocks, of which they hold the pieces. `moves`: what would be done with both. `notes`: what
    was looked at and what was not, a sentence each.
    """

    status: PlanStatus
    objective: float
    bound: float
    gap: float
    solve_s: float
    seed: int
    ttft_s: float
    tpot_s: float
    chunk_s: float
    slowest_chunk_s: float
    precision: Precision
    shapes: Shapes
    prompt_tokens: int
    new_tokens: int
    sequences: int
    stages: tuple[Stage, ...]
    devices: Mapping[str, DeviceLoad]
    unused: Mapping[str, str]
    transmissions: tuple[Transmission, ...]
    problem: str
    spares: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    spare_problem: str = ""
    moves: tuple[Move, ...] = ()
    notes: tuple[str, ...] = ()
    portion: int | None = None
    divisions: tuple[Stage, ...] = ()

    def stage_of(self, block: int) -> Stage:
        """The stage that has `block`."""
        return next(stage for stage in self.stages if block in stage.blocks)

    def stages_of(self, device: str) -> tuple[Stage, ...]:
        """The stages that `device` takes part in, in order: the head has two in a plan with workers."""
        return tuple(stage for stage in self.stages if device in stage.devices)

    @property
    def wires(self) -> Mapping[str, WireFormat]:
        """The formats of tensors that travel in another than their own."""
        return {t.tensor: t.wire for t in self.transmissions if t.wire != WireFormat.F32}

    @property
    def held(self) -> Mapping[str, tuple[int, ...]]:
        """The whole blocks on each device's disk, run or spare, ascending; by name. A device that only takes part in a
        group, or may, has none; one that neither runs nor holds anything is left out."""
        run = {
            device: [b for stage in self.stages_of(device) if not stage.is_group for b in stage.blocks]
            for device in self.devices
        }
        pieced = {name for stage in self.divisions for name in stage.devices}
        names = sorted({*run, *self.spares, *pieced})
        return {name: tuple(sorted({*run.get(name, ()), *self.spares.get(name, ())})) for name in names}
