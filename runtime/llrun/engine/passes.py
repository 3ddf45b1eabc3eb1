"""Runs a segment: for one step alone, or once for the single rows of several sequences, joined."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from llrun.device.library import Library
from llrun.device.load import Block
from llrun.engine.stores import SequenceStore, StepState
from llrun.errors import INTERNAL, RunError
from llrun.memory import Array, aligned_copy, empty
from llrun.programs.program import Program, Segment
from llrun.schema import Release, Run, Send
from llrun.wire.protocol import (
    ALL_ROWS,
    LAST_CHUNK,
    ONE_ROW,
    TENSOR,
    Header,
    pack_header,
    pack_rows,
)

FINAL = LAST_CHUNK | ALL_ROWS
ALONE, CHUNK, JOINED = 0, 1, 2  # one row of one sequence; several of one; one of each of several
KINDS = ("decode", "prefill", "batch")  # the functions for them
Steps = Sequence[StepState]


class Results(Protocol):
    """Where a segment's results go."""

    def send(self, destination: str, header: bytes, payload: memoryview) -> None: ...
    def logits(self, steps: Sequence[tuple[int, int]], rows: Array) -> None: ...


@dataclass(frozen=True)
class JoinedRow:
    """Row `index` of `tensor`, which holds a row of each of `count` sequences."""

    tensor: Any
    index: int
    count: int


@dataclass(frozen=True)
class Call:
    """A Run with everything but its inputs and slots bound. `functions`: for ALONE, CHUNK and JOINED."""

    template: str
    block: int | None
    functions: tuple[Callable[..., Any], ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    params: tuple[Any, ...]
    caches: tuple[Any, ...]
    last: bool
    logits: bool


Action = Call | Send | Release


@dataclass(frozen=True)
class Bound:
    """A segment ready to run.

    `waits_early`, `early`: what it waits for and does on a chunk that is not a prompt's last. `reads`:
    tensors made before it. `later`: those that segments after it use. `positions`, `stateful`: whether it
    uses position ids and caches. `one_row`: whether all it does is done for the newest row alone.
    """

    waits: frozenset[int]
    only_last: frozenset[int]
    waits_early: frozenset[int]
    actions: tuple[Action, ...]
    early: tuple[Action, ...]
    reads: tuple[int, ...]
    later: frozenset[int]
    positions: bool
    stateful: bool
    one_row: bool


def is_row(segment: Bound, step: StepState) -> bool:
    """Whether `segment` computes a single row of `step`, which can be joined with others' rows."""
    flags = step.flags
    return bool(flags & FINAL) and (step.rows == 1 or (segment.one_row and not flags & ALL_ROWS))


@dataclass
class Pass:
    """Steps that a segment runs for, the tensors at hand, and how its functions are to be called. `narrow`:
    a prompt's last chunk, of which `last` actions take the last row."""

    steps: Steps
    values: dict[int, Any]
    kind: int
    narrow: bool
    slots: Any


class Runner:
    """Runs segments. `compute_s`: seconds spent so, sends aside; `sent_bytes`: with headers."""

    def __init__(self, program: Program, library: Library, outside: Results) -> None:
        self._program = program
        self._library = library
        self._outside = outside
        self._since = 0.0
        self.compute_s = 0.0
        self.sent_bytes = 0

    def run(self, segment: Bound, steps: Steps) -> None:
        """Run `segment` for one step, or for several of which it computes one row each (`is_row`)."""
        self._since = time.perf_counter()
        one = self._joined(segment, steps) if len(steps) > 1 else self._alone(segment, steps[0])
        for action in segment.actions if steps[0].flags & FINAL else segment.early:
            if isinstance(action, Call):
                self._call(action, one)
            elif isinstance(action, Send):
                self._send(action, one)
            else:
                one.values.pop(action.tensor, None)
        if len(steps) > 1:
            _split(segment, one)
        self.compute_s += time.perf_counter() - self._since

    # --- tensors at hand ---

    def _alone(self, segment: Bound, step: StepState) -> Pass:
        values = step.values
        for tensor in segment.reads:
            value = values.get(tensor)
            if isinstance(value, JoinedRow):
                values[tensor] = self._library.wrap(aligned_copy(self._row(tensor, value)))
        if segment.positions:
            positions = np.arange(step.position, step.position + step.rows)
            values[self._program.position_ids] = self._integers(positions[None])
        narrow = step.rows > 1 and step.flags & FINAL == LAST_CHUNK
        return Pass((step,), values, ALONE if step.rows == 1 else CHUNK, narrow, step.sequence.slots)

    def _joined(self, segment: Bound, steps: Steps) -> Pass:
        values = {tensor: self._join(tensor, steps) for tensor in segment.reads}
        if segment.positions:
            positions = np.array([[step.position + step.rows - 1 for step in steps]])
            values[self._program.position_ids] = self._integers(positions)
        slots = None
        if segment.stateful:
            slots = self._integers(np.array([step.sequence.slot for step in steps]))
        return Pass(steps, values, JOINED, False, slots)

    def _join(self, tensor: int, steps: Steps) -> Any:
        """The steps' rows of a tensor as one. Rows that were joined so before are not copied."""
        parts = [step.values[tensor] for step in steps]
        if _is_whole(parts):
            return parts[0].tensor
        layout, count = self._program.layouts[tensor], len(steps)
        joined = empty(layout.dims(count), layout.dtype)
        np.concatenate([self._row(tensor, part) for part in parts], layout.axis, out=joined)
        return self._library.wrap(joined)

    def _row(self, tensor: int, value: Any) -> Array:
        """The row a value stands for, of a chunk's the last, its axis kept."""
        axis = self._program.layouts[tensor].axis
        if isinstance(value, JoinedRow):
            array = self._library.unwrap(value.tensor)
            return array[(slice(None),) * axis + (slice(value.index, value.index + 1),)]
        return _last(self._library.unwrap(value), axis)

    def _integers(self, numbers: Array) -> Any:
        array = empty(numbers.shape, "int64")
        array[...] = numbers
        return self._library.wrap(array)

    # --- actions ---

    def _call(self, call: Call, one: Pass) -> None:
        inputs = [one.values[tensor] for tensor in call.inputs]
        function = call.functions[one.kind]
        if one.narrow and call.last:
            inputs = [self._last_row(*pair) for pair in zip(call.inputs, inputs, strict=True)]
            function = call.functions[ALONE]
        try:
            if call.caches:
                result = function(*inputs, *call.params, one.slots, *call.caches)
            else:
                result = function(*inputs, *call.params)
        except (RuntimeError, ValueError, TypeError) as error:
            where = "" if call.block is None else f" of block {call.block}"
            raise RunError("R501", f"template {call.template}{where} failed: {error}", INTERNAL) from error
        if len(call.outputs) == 1:
            one.values[call.outputs[0]] = result
        else:
            one.values.update(zip(call.outputs, result, strict=True))
        if call.logits:
            rows = self._library.unwrap(one.values[self._program.logits])
            self._outside.logits([(step.sequence.number, step.position) for step in one.steps], rows)

    def _last_row(self, tensor: int, value: Any) -> Any:
        array = self._library.unwrap(value)
        axis = self._program.layouts[tensor].axis
        return value if array.shape[axis] == 1 else self._library.wrap(aligned_copy(_last(array, axis)))

    def _send(self, send: Send, one: Pass) -> None:
        layout = self._program.layouts[send.tensor]
        array = self._library.unwrap(one.values[send.tensor])
        if one.narrow and send.rows == "last":
            array = _last(array, layout.axis)
        array = np.ascontiguousarray(array)
        rows, count = array.shape[layout.axis], len(one.steps)
        due = (count,) if count > 1 else (1, one.steps[0].rows)
        if array.nbytes != rows * layout.row_bytes or rows not in due:
            raise RunError("R501", f"tensor {layout.name} came out as {array.dtype} {array.shape}", INTERNAL)
        header = self._header(send.tensor, layout.code, one.steps, rows, array.nbytes)
        self.compute_s += time.perf_counter() - self._since
        self._outside.send(send.destination, header, array.data.cast("B"))
        self._since = time.perf_counter()
        self.sent_bytes += len(header) + array.nbytes

    def _header(self, tensor: int, code: int, steps: Steps, rows: int, size: int) -> bytes:
        """What goes before the bytes of `rows` rows: a header, for several steps with a table."""
        count = len(steps)
        headers = [
            Header(
                TENSOR,
                step.flags | (ONE_ROW if rows == count else 0),
                code,
                self._program.epoch,
                step.sequence.number,
                step.position,
                step.rows,
                tensor,
                size // count,
            )
            for step in steps
        ]
        return pack_header(headers[0]) if count == 1 else pack_rows(headers)


def _is_whole(parts: Sequence[Any]) -> bool:
    """Whether the parts are all rows of one tensor, in order."""
    first = parts[0]
    return (
        isinstance(first, JoinedRow)
        and first.count == len(parts)
        and all(
            isinstance(part, JoinedRow) and part.tensor is first.tensor and part.index == index
            for index, part in enumerate(parts)
        )
    )


def _split(segment: Bound, one: Pass) -> None:
    """Leave with each step what later segments use: its rows of what was joined, and what only waits."""
    left = {tensor: value for tensor, value in one.values.items() if tensor in segment.later}
    for index, step in enumerate(one.steps):
        step.values = {tensor: step.values[tensor] for tensor in segment.later & step.values.keys()}
        step.values.update(
            (tensor, JoinedRow(value, index, len(one.steps))) for tensor, value in left.items()
        )


def _last(array: Array, axis: int) -> Array:
    return array[(slice(None),) * axis + (slice(-1, None),)]


# --- binding, once at the start ---


def bind(
    program: Program, blocks: Mapping[int, Block], library: Library, sequences: SequenceStore
) -> tuple[Bound, ...]:
    """The program's segments with functions, weights and caches in place."""
    used = [_used(segment) for segment in program.segments]
    return tuple(
        _bound(segment, frozenset().union(*used[index + 1 :]), program, blocks, library, sequences)
        for index, segment in enumerate(program.segments)
    )


def _used(segment: Segment) -> frozenset[int]:
    """Tensors that the segment's instructions take and don't make before."""
    used: set[int] = set()
    made: set[int] = set()
    for instruction in segment.instructions:
        if isinstance(instruction, Run):
            used.update(set(instruction.inputs) - made)
            made.update(instruction.outputs)
        elif isinstance(instruction, Send) and instruction.tensor not in made:
            used.add(instruction.tensor)
    return frozenset(used)


def _bound(
    segment: Segment,
    later: frozenset[int],
    program: Program,
    blocks: Mapping[int, Block],
    library: Library,
    sequences: SequenceStore,
) -> Bound:
    used = _used(segment)
    actions = tuple(
        _call_of(each, program, blocks, library, sequences) if isinstance(each, Run) else each
        for each in segment.instructions
    )
    whole = [each.rows == "all" for each in segment.instructions if isinstance(each, Run | Send)]
    fed = used & {program.input_ids}  # with every step, where tokens are this device's own
    return Bound(
        waits=segment.waits | fed,
        only_last=segment.waits_last,
        waits_early=segment.waits - segment.waits_last | fed,
        actions=actions,
        early=tuple(action for action in actions if not _is_last(action)),
        reads=tuple(sorted(used - {program.position_ids})),
        later=later,
        positions=program.position_ids in used,
        stateful=any(isinstance(action, Call) and action.caches for action in actions),
        one_row=not any(whole),
    )


def _is_last(action: Action) -> bool:
    if isinstance(action, Call):
        return action.last
    return isinstance(action, Send) and action.rows == "last"


def _call_of(
    run: Run, program: Program, blocks: Mapping[int, Block], library: Library, sequences: SequenceStore
) -> Call:
    block = None if run.block is None else blocks[run.block]
    caches = sequences.caches(run.block) if run.block is not None else ()
    return Call(
        template=run.template,
        block=run.block,
        functions=tuple(library.functions[f"{run.template}_{kind}"] for kind in KINDS),
        inputs=run.inputs,
        outputs=run.outputs,
        params=block.params if block else (),
        caches=caches,
        last=run.rows == "last",
        logits=program.logits in run.outputs,
    )
