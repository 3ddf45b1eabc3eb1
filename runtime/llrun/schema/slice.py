"""slice.json: all that one device needs to know."""

from __future__ import annotations

from llrun.schema.base import FileEntry, Positive, Size, Strict
from llrun.schema.envelope import Envelope
from llrun.schema.graph import GraphRecord
from llrun.schema.instructions import DeviceProgram
from llrun.schema.plan import StageRecord, TransmissionRecord
from llrun.schema.values import Isa, Precision, Shapes


class Param(Strict, frozen=True):
    """Entry `name` of a block's safetensors file: the next argument of its functions. `by_token`: row i is read
    for token i, and for nothing else."""

    name: str
    dtype: str
    shape: tuple[Size, ...]
    by_token: bool = False


class CacheArray(Strict, frozen=True):
    """One cache argument, without its leading axis: that of slots, one for each open sequence.

    `token_axes`: the axes of `shape` that together count positions, outermost first; a position is the index along
    them, in row-major order.
    """

    dtype: str
    shape: tuple[Size, ...]
    token_axes: tuple[Size, ...]


class BlockEntry(Strict, frozen=True):
    id: Size
    template: str
    file: str
    params: tuple[Param, ...]
    caches: tuple[CacheArray, ...]


class ModelInfo(Strict, frozen=True):
    name: str
    architecture: str
    precision: Precision
    shapes: Shapes
    vocab_size: Positive
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]


class DeviceInfo(Strict, frozen=True):
    """`peak_bytes`: the most memory that the plan has the device take, of `memory_bytes`. `isa`: the instruction
    set its library uses."""

    name: str
    target: str
    address: str
    threads: Positive
    memory_bytes: Positive
    peak_bytes: Positive
    isa: Isa


class Slice(Strict, frozen=True):
    """All that one device needs to know. `bundle`: identity shared by all slices of one bundle: devices
    of different bundles refuse each other. `devices`: every device of the plan by name. `graph`, `stages`,
    `transmissions`: what all devices' programs were written from. `blocks`: those that the device holds: what
    `program` runs, and spares. `envelope`: what each device could run. `max_payload_bytes` bounds a tensor
    message. `files`: every other file of the slice, relative to its folder."""

    schema: int
    digest: str
    bundle: str
    model: ModelInfo
    device: str
    head: str
    devices: dict[str, DeviceInfo]
    library: str
    runtime_library: str
    graph: GraphRecord
    stages: tuple[StageRecord, ...]
    transmissions: tuple[TransmissionRecord, ...]
    envelope: Envelope
    blocks: tuple[BlockEntry, ...]
    program: DeviceProgram
    max_payload_bytes: Positive
    files: dict[str, FileEntry]
