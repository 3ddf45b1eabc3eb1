"""Turns a DeviceProgram into segments: what runs as one as soon as the tensors it waits for are there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from llrun.errors import RunError
from llrun.schema import AllReduce, Load, Receive, Release, Run, Send, Slice, Step, Tensor

DTYPE_CODES = {"float32": 1, "float16": 2, "int64": 3, "int32": 4, "int8": 5, "uint8": 6}  # on the wire
Operation = Run | Send | Release


@dataclass(frozen=True)
class Limits:
    """Bounds on what a tensor frame may claim: rows of a chunk, positions, payload bytes."""

    chunk: int
    context: int
    payload_bytes: int


@dataclass(frozen=True)
class Segment:
    """`waits`: tensors to have before running; `waits_last`: those of them that only a prompt's last
    chunk brings. `operations`: in order. A segment of the program's start may wait for nothing."""

    waits: frozenset[int]
    waits_last: frozenset[int]
    operations: tuple[Operation, ...]


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
    """Check the slice's program and split it. Raises RunError R207 that names the step at fault."""
    steps = record.program.steps
    layouts = {tensor.id: _layout(tensor) for tensor in record.tensors}
    given = {record.position_ids} | ({record.input_ids} if record.device == record.head else set())
    _check(record, steps, layouts, given)
    sources = {step.tensor: step.source for step in steps if isinstance(step, Receive)}
    destinations = {step.destination for step in steps if isinstance(step, Send)}
    runs = [step for step in steps if isinstance(step, Run)]
    segments = _segments(steps)
    return Program(
        device=record.device,
        epoch=record.program.epoch,
        chunk=record.model.chunk,
        segments=segments,
        layouts=layouts,
        sources=sources,
        segment_of={tensor: index for index, one in enumerate(segments) for tensor in one.waits},
        neighbours=frozenset(destinations | set(sources.values())),
        blocks=tuple(step.block for step in steps if isinstance(step, Load)),
        templates=frozenset(run.template for run in runs),
        reads_tokens=frozenset(
            run.block for run in runs if run.block is not None and record.input_ids in run.inputs
        ),
        input_ids=record.input_ids,
        position_ids=record.position_ids,
        logits=record.logits,
    )


def _segments(steps: Iterable[Step]) -> tuple[Segment, ...]:
    segments: list[Segment] = []
    waits: set[int] = set()
    operations: list[Operation] = []
    for step in steps:
        if isinstance(step, Receive):
            if operations:
                segments.append(_segment(waits, operations))
                waits, operations = set(), []
            waits.add(step.tensor)
        elif isinstance(step, Run | Send | Release):
            operations.append(step)
    if operations or waits:
        segments.append(_segment(waits, operations))
    return _only_last(tuple(segments))


def _segment(waits: set[int], operations: list[Operation]) -> Segment:
    return Segment(frozenset(waits), frozenset(), tuple(operations))


def _only_last(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """Mark received tensors that are used by `rows: last` steps alone: earlier chunks do without them."""
    every: set[int] = set()
    for segment in segments:
        for step in segment.operations:
            if isinstance(step, Run) and step.rows == "all":
                every.update(step.inputs)
            elif isinstance(step, Send) and step.rows == "all":
                every.add(step.tensor)
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


def _check(record: Slice, steps: tuple[Step, ...], layouts: Mapping[int, Layout], given: set[int]) -> None:
    known = set(given)
    loaded: set[int] = set()
    blocks = {block.id: block for block in record.blocks}
    for index, step in enumerate(steps):
        fault = _fault(record, step, known, loaded, blocks.keys(), layouts)
        if fault:
            raise RunError("R207", f"step {index} of {record.device}'s program: {fault}")
        if isinstance(step, Load):
            loaded.add(step.block)
        elif isinstance(step, Run):
            known.update(step.outputs)
        elif isinstance(step, Receive):
            known.add(step.tensor)
        elif isinstance(step, Release):
            known.discard(step.tensor)


def _fault(
    record: Slice,
    step: Step,
    known: set[int],
    loaded: set[int],
    blocks: Iterable[int],
    layouts: Mapping[int, Layout],
) -> str | None:
    tensors = (*step.inputs, *step.outputs) if isinstance(step, Run) else ()
    tensors = (step.tensor,) if isinstance(step, Send | Receive | Release) else tensors
    unknown = [tensor for tensor in tensors if tensor not in layouts]
    if unknown:
        return f"tensor {unknown[0]} is not described"
    if isinstance(step, AllReduce):
        return "all_reduce is not in this version"
    if isinstance(step, Load):
        return None if step.block in blocks else f"block {step.block} is not in the slice"
    if isinstance(step, Run | Send) and step.rows not in ("all", "last"):
        return f"rows is {step.rows!r}: all or last"
    if isinstance(step, Run) and step.block is not None and step.block not in loaded:
        return f"block {step.block} is run but was not loaded"
    missing = [tensor for tensor in _uses(step) if tensor not in known]
    if missing:
        return (
            f"tensor {layouts[missing[0]].name} is used before it is made or received, or after its release"
        )
    peer = step.destination if isinstance(step, Send) else step.source if isinstance(step, Receive) else None
    if peer is not None and (peer not in record.devices or peer == record.device):
        return f"device {peer} is not another device of the plan"
    return None


def _uses(step: Step) -> tuple[int, ...]:
    if isinstance(step, Run):
        return step.inputs
    return (step.tensor,) if isinstance(step, Send | Release) else ()
