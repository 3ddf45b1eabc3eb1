"""The bundle's files as types: manifest.json, and slice.json in each device's folder. llcompile writes,
llrun reads.

Strict: unknown fields are refused. Both files carry `digest`, the sha256 of their own canonical text with an
empty digest, so that a flipped byte is found before anything in the file is believed.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, TypeVar

import msgspec

SCHEMA = 1
MAX_BATCH = 16  # sequences of which a `<template>_batch` function computes one row each
Size = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every record: immutable, unknown fields refused."""


# --- what a device does ---


class Load(Strict, frozen=True, tag="load", tag_field="op"):
    """Bring a block's weights into memory (set-up)."""

    block: Size


class Receive(Strict, frozen=True, tag="receive", tag_field="op"):
    """Wait for `tensor` from device `source`. A receive that follows another kind of instruction begins a
    segment: the instructions up to the next such receive, run as one as soon as all the segment's tensors are
    there."""

    tensor: Size
    source: str


class Run(Strict, frozen=True, tag="run", tag_field="op"):
    """Call `<template>_decode` (one row), `<template>_prefill`, or for one row of each of several sequences
    `<template>_batch`. `block` is None for the positions template.

    inputs, outputs: tensor ids in the template's order. `rows`: `last` if only the newest row is needed:
    then it runs on the last row of the last chunk of a prompt, and not at all on the chunks before.
    """

    template: str
    block: Size | None
    inputs: tuple[Size, ...]
    outputs: tuple[Size, ...]
    rows: str = "all"


class Send(Strict, frozen=True, tag="send", tag_field="op"):
    """Send `tensor` to device `destination`; `rows` as for Run."""

    tensor: Size
    destination: str
    rows: str = "all"


class AllReduce(Strict, frozen=True, tag="all_reduce", tag_field="op"):
    """Sum `tensor` over `group`, in the group's order."""

    tensor: Size
    group: tuple[str, ...]


class Release(Strict, frozen=True, tag="release", tag_field="op"):
    """`tensor` is not needed any more in this step."""

    tensor: Size


Instruction = Load | Receive | Run | Send | AllReduce | Release


class Tensor(Strict, frozen=True):
    """A tensor of the program: dtype (numpy's name) and shape, with -1 for n, the new tokens."""

    id: Size
    name: str
    dtype: str
    shape: tuple[int, ...]


class DeviceProgram(Strict, frozen=True):
    device: str
    epoch: Size
    instructions: tuple[Instruction, ...]


# --- a slice ---


class FileEntry(Strict, frozen=True):
    size_bytes: Size
    sha256: str


class Param(Strict, frozen=True):
    """Entry `name` of a block's safetensors file: the next argument of its functions. `by_token`: row i is read
    for token i, and for nothing else."""

    name: str
    dtype: str
    shape: tuple[Size, ...]
    by_token: bool = False


class CacheArray(Strict, frozen=True):
    """One cache argument, without its leading axis: that of slots, one for each open sequence."""

    dtype: str
    shape: tuple[Size, ...]


class BlockEntry(Strict, frozen=True):
    id: Size
    template: str
    file: str
    params: tuple[Param, ...]
    caches: tuple[CacheArray, ...]


class ModelInfo(Strict, frozen=True):
    name: str
    architecture: str
    quant: str
    vocab_size: Positive
    context: Positive
    chunk: Positive
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]


class DeviceInfo(Strict, frozen=True):
    """`isa`: the instruction set its library uses, as llcompile.ir.cluster names them."""

    name: str
    target: str
    address: str
    threads: Positive
    memory_bytes: Positive
    isa: str = ""


class Slice(Strict, frozen=True):
    """All that one device needs to know. `bundle`: identity shared by all slices of one bundle: devices
    of different bundles refuse each other. `devices`: every device of the plan by name. `inputs` and
    `logits`: tensor ids of the model's inputs (`input_ids`, `position_ids`) and of its output.
    `max_payload_bytes` bounds a tensor message. `files`: every other file of the slice, relative to its
    folder."""

    schema: int
    digest: str
    bundle: str
    model: ModelInfo
    device: str
    head: str
    devices: dict[str, DeviceInfo]
    library: str
    runtime_library: str
    tensors: tuple[Tensor, ...]
    input_ids: Size
    position_ids: Size
    logits: Size
    blocks: tuple[BlockEntry, ...]
    program: DeviceProgram
    max_payload_bytes: Positive
    files: dict[str, FileEntry]


# --- the whole bundle ---


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
    kind: str
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
    """The plan as `llcompile plan --json` prints it. No wall-clock figure is in a bundle: `solve_s` is 0
    there."""

    status: str
    objective: float
    bound: float
    gap: float
    solve_s: float
    seed: int
    ttft_s: float
    tpot_s: float
    quant: str
    context: Positive
    chunk: Positive
    stages: tuple[StageRecord, ...]
    devices: dict[str, LoadRecord]
    unused: dict[str, str]
    transmissions: tuple[TransmissionRecord, ...]
    blocks: tuple[BlockRecord, ...]


class Manifest(Strict, frozen=True):
    """manifest.json. `files`: every other file of the bundle, relative to it, slices included."""

    schema: int
    digest: str
    bundle: str
    model: ModelInfo
    head: str
    plan: PlanRecord
    programs: dict[str, DeviceProgram]
    files: dict[str, FileEntry]


Sealed = TypeVar("Sealed", Slice, Manifest)


def encode(record: Slice | Manifest) -> bytes:
    """Canonical text: sorted keys, two spaces, the digest filled in."""
    bare = msgspec.structs.replace(record, digest="")
    sealed = msgspec.structs.replace(bare, digest=hashlib.sha256(_canonical(bare)).hexdigest())
    return msgspec.json.format(_canonical(sealed), indent=2) + b"\n"


def decode(text: bytes, kind: type[Sealed]) -> Sealed:
    """Parse and check `text`. Raises ValueError that says what is wrong (msgspec.ValidationError is one)."""
    try:
        record = msgspec.json.decode(text, type=kind)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if record.schema != SCHEMA:
        raise ValueError(f"schema {record.schema}, this version reads schema {SCHEMA}")
    if encode(record) != text:
        raise ValueError("the text does not match its digest: the file was damaged or edited")
    return record


def _canonical(record: Slice | Manifest) -> bytes:
    # Through its own type once: an int in a float's place would be written as 3 and read back as 3.0.
    exact = msgspec.convert(msgspec.to_builtins(record), type(record))
    return msgspec.json.encode(exact, order="sorted")
