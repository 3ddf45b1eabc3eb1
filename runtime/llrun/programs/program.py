"""Turns a DeviceProgram into segments: what runs as one as soon as the tensors it waits for are there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from llrun.errors import RunError
from llrun.schema import AllReduce, Instruction, Load, Receive, Release, Run, Send, Slice, Tensor

DTYPE_CODES = {"float32": 1, "float16": 2, "int64": 3, "int32": 4, "int8": 5, "uint8": 6}  # on the wire
Work = Run | Send | Release


@dataclass(frozen=True)
class Limits:
    """Bounds on what a tensor frame may claim: rows of a chunk, positions, payload bytes."""

    chunk: int
    context: int
    payload_bytes: int


@dataclass(frozen=True)
class Segment:
    """`waits`: tensors to have before running; `waits_last`: those of them that only a prompt's last
    chunk brings. `instructions`: in order. A segment of the program's start may wait for nothing."""

    waits: frozenset[int]
    waits_last: frozenset[int]
    instructions: tuple[Work, ...]


@dataclass(frozen=True)
class Layout:
    """What a tensor looks like on the wire: shape with -1 for the rows, bytes of one row."""

    name: str
    dtype: str
    code: int
    shape: tuple[int, ...]
    axis: int
    row_bytes: int

    def dims(self, rows: int) -> tuple[int, ...]:
        return tuple(rows if size == -1 else size for size in self.shape)


@dataclass(frozen=True)
class Program:
    """`sources` and `segment_of`: for each tensor received, the device that sends it and the segment
    that waits for it. `neighbours`: devices it exchanges tensors with. `reads_tokens`: blocks that look
    token ids up in tables. `chunk`: the most rows of a step."""

    device: str
    epoch: int
    chunk: int
    segments: tuple[Segment, ...]
    layouts: Mapping[int, Layout]
    sources: Mapping[int, str]
    segment_of: Mapping[int, int]
    neighbours: frozenset[str]
    blocks: tuple[int, ...]
    templates: frozenset[str]
    reads_tokens: frozenset[int]
    input_ids: int
    position_ids: int
    logits: int

    @property
    def every_chunk(self) -> bool:
        """Whether this device takes part in a prompt's every chunk, or only in the last."""
        return any(not one.waits or one.waits - one.waits_last for one in self.segments)


def build_program(record: Slice) -> Program:
    """Check the slice's program and split it. Raises RunError R207 that names the instruction at fault."""
    instructions = record.program.instructions
    layouts = {tensor.id: _layout(tensor) for tensor in record.tensors}
    given = {record.position_ids} | ({record.input_ids} if record.device == record.head else set())
    _check(record, instructions, layouts, given)
    sources = {
        instruction.tensor: instruction.source
        for instruction in instructions
        if isinstance(instruction, Receive)
    }
    destinations = {instruction.destination for instruction in instructions if isinstance(instruction, Send)}
    runs = [instruction for instruction in instructions if isinstance(instruction, Run)]
    segments = _segments(instructions)
    return Program(
        device=record.device,
        epoch=record.program.epoch,
        chunk=record.model.chunk,
        segments=segments,
        layouts=layouts,
        sources=sources,
        segment_of={tensor: index for index, one in enumerate(segments) for tensor in one.waits},
        neighbours=frozenset(destinations | set(sources.values())),
        blocks=tuple(instruction.block for instruction in instructions if isinstance(instruction, Load)),
        templates=frozenset(run.template for run in runs),
        reads_tokens=frozenset(
            run.block for run in runs if run.block is not None and record.input_ids in run.inputs
        ),
        input_ids=record.input_ids,
        position_ids=record.position_ids,
        logits=record.logits,
    )


def _segments(instructions: Iterable[Instruction]) -> tuple[Segment, ...]:
    segments: list[Segment] = []
    waits: set[int] = set()
    work: list[Work] = []
    for instruction in instructions:
        if isinstance(instruction, Receive):
            if work:
                segments.append(_segment(waits, work))
                waits, work = set(), []
            waits.add(instruction.tensor)
        elif isinstance(instruction, Run | Send | Release):
            work.append(instruction)
    if work or waits:
        segments.append(_segment(waits, work))
    return _only_last(tuple(segments))


def _segment(waits: set[int], work: list[Work]) -> Segment:
    return Segment(frozenset(waits), frozenset(), tuple(work))


def _only_last(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """Mark received tensors that are used by `rows: last` instructions alone: earlier chunks do without them."""
    every: set[int] = set()
    for segment in segments:
        for instruction in segment.instructions:
            if isinstance(instruction, Run) and instruction.rows == "all":
                every.update(instruction.inputs)
            elif isinstance(instruction, Send) and instruction.rows == "all":
                every.add(instruction.tensor)
    return tuple(replace(segment, waits_last=segment.waits - every) for segment in segments)


def _layout(tensor: Tensor) -> Layout:
    code = DTYPE_CODES.get(tensor.dtype)
    if code is None:
        raise RunError(
            "R207", f"tensor {tensor.name} has dtype {tensor.dtype}, which this version does not know"
        )
    if tensor.shape.count(-1) != 1 or any(size == 0 or size < -1 for size in tensor.shape):
        raise RunError(
            "R207", f"tensor {tensor.name} has shape {list(tensor.shape)}: one -1, the rest positive"
        )
    row_bytes = -prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
    return Layout(tensor.name, tensor.dtype, code, tensor.shape, tensor.shape.index(-1), row_bytes)


def _check(
    record: Slice, instructions: tuple[Instruction, ...], layouts: Mapping[int, Layout], given: set[int]
) -> None:
    known = set(given)
    loaded: set[int] = set()
    blocks = {block.id: block for block in record.blocks}
    for index, instruction in enumerate(instructions):
        fault = _fault(record, instruction, known, loaded, blocks.keys(), layouts)
        if fault:
            raise RunError("R207", f"instruction {index} of {record.device}'s program: {fault}")
        if isinstance(instruction, Load):
            loaded.add(instruction.block)
        elif isinstance(instruction, Run):
            known.update(instruction.outputs)
        elif isinstance(instruction, Receive):
            known.add(instruction.tensor)
        elif isinstance(instruction, Release):
            known.discard(instruction.tensor)


def _fault(
    record: Slice,
    instruction: Instruction,
    known: set[int],
    loaded: set[int],
    blocks: Iterable[int],
    layouts: Mapping[int, Layout],
) -> str | None:
    tensors = (*instruction.inputs, *instruction.outputs) if isinstance(instruction, Run) else ()
    tensors = (instruction.tensor,) if isinstance(instruction, Send | Receive | Release) else tensors
    unknown = [tensor for tensor in tensors if tensor not in layouts]
    if unknown:
        return f"tensor {unknown[0]} is not described"
    if isinstance(instruction, AllReduce):
        return "all_reduce is not in this version"
    if isinstance(instruction, Load):
        return None if instruction.block in blocks else f"block {instruction.block} is not in the slice"
    if isinstance(instruction, Run | Send) and instruction.rows not in ("all", "last"):
        return f"rows is {instruction.rows!r}: all or last"
    if isinstance(instruction, Run) and instruction.block is not None and instruction.block not in loaded:
        return f"block {instruction.block} is run but was not loaded"
    missing = [tensor for tensor in _uses(instruction) if tensor not in known]
    if missing:
        return (
            f"tensor {layouts[missing[0]].name} is used before it is made or received, or after its release"
        )
    peer = (
        instruction.destination
        if isinstance(instruction, Send)
        else instruction.source
        if isinstance(instruction, Receive)
        else None
    )
    if peer is not None and (peer not in record.devices or peer == record.device):
        return f"device {peer} is not another device of the plan"
    return None


def _uses(instruction: Instruction) -> tuple[int, ...]:
    if isinstance(instruction, Run):
        return instruction.inputs
    return (instruction.tensor,) if isinstance(instruction, Send | Release) else ()
