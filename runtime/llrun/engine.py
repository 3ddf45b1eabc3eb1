"""Executes a device's program: one thread, one inbox, segments run as soon as what they wait for is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np

from llrun.errors import INTERNAL, RunError
from llrun.library import Library
from llrun.memory import Array, aligned_copy, empty, peak_bytes
from llrun.program import Program, Segment
from llrun.protocol import (
    ALL_ROWS,
    HEADER_BYTES,
    LAST_CHUNK,
    ONE_ROW,
    TENSOR,
    Figures,
    Header,
    ProtocolError,
    pack_header,
)
from llrun.schema import Release, Run, Send
from llrun.stores import Block, Sequence, SequenceStore, StepState

FINAL = LAST_CHUNK | ALL_ROWS
MAX_STEPS = 64

# --- what comes in ---


@dataclass(frozen=True)
class Arrived:
    """A tensor from another device, its header already checked against the program."""

    header: Header
    array: Array


@dataclass(frozen=True)
class Fed:
    """New tokens of a sequence, on the head: token ids int64 (1, n)."""

    sequence: int
    position: int
    flags: int
    ids: Array


@dataclass(frozen=True)
class Opening:
    sequence: int


@dataclass(frozen=True)
class Closing:
    sequence: int


@dataclass(frozen=True)
class Asking:
    """Somebody wants the figures."""


@dataclass(frozen=True)
class Stop:
    """End the loop; with an error, because of it."""

    error: RunError | None = None


Event = Arrived | Fed | Opening | Closing | Asking | Stop


class Outside(Protocol):
    """Where results go. Called from the engine's thread."""

    def send(self, destination: str, header: bytes, payload: memoryview) -> None: ...
    def opened(self, sequence: int, figures: Figures) -> None: ...
    def step_done(self, sequence: int, position: int, figures: Figures) -> None: ...
    def measured(self, figures: Figures) -> None: ...
    def logits(self, sequence: int, position: int, rows: Array) -> None: ...


@dataclass(frozen=True)
class Call:
    """A Run with everything but its inputs and caches bound."""

    template: str
    block: int | None
    decode: Callable[..., Any]
    prefill: Callable[..., Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    params: tuple[Any, ...]
    stateful: bool
    last: bool


@dataclass(frozen=True)
class Bound:
    """A segment ready to run. `waits_early`: what it waits for on a chunk that is not a prompt's last."""

    waits: frozenset[int]
    only_last: frozenset[int]
    waits_early: frozenset[int]
    operations: tuple[Call | Send | Release, ...]


class Engine:
    """One device's part of every step of one session.

    `blocks` and `library` are injected: any mapping of callables over arrays serves. `inbox` is the only
    way in, and safe from any thread. A step's tensors, caches and cursor are touched by the thread that
    calls `run` alone.
    """

    def __init__(
        self,
        program: Program,
        blocks: Mapping[int, Block],
        library: Library,
        outside: Outside,
        inbox: SimpleQueue[Event],
    ) -> None:
        self.inbox = inbox
        self._program = program
        self._library = library
        self._outside = outside
        self._segments = tuple(_bind(segment, blocks, library) for segment in program.segments)
        self._sequences = SequenceStore(blocks, library.wrap, len(self._segments))
        self._compute_s = 0.0
        self._wait_s = 0.0
        self._sent_bytes = 0
        self._peak_bytes = 0

    def run(self) -> None:
        """Handle events until Stop. Raises RunError: the stop's own, or what went wrong here."""
        while True:
            start = time.perf_counter()
            event = self.inbox.get()
            self._wait_s += time.perf_counter() - start
            if isinstance(event, Stop):
                if event.error:
                    raise event.error
                return
            self._handle(event)

    def _handle(self, event: Event) -> None:
        if isinstance(event, Arrived):
            self._arrived(event.header, event.array)
        elif isinstance(event, Fed):
            self._fed(event)
        elif isinstance(event, Opening):
            if not self._sequences.open(event.sequence):
                raise RunError(
                    "R402",
                    f"sequence {event.sequence} refused: at most {self._sequences.capacity} at once,"
                    " each number once",
                )
            self._outside.opened(event.sequence, self.measure())
        elif isinstance(event, Closing):
            self._sequences.close(event.sequence)
        elif isinstance(event, Asking):
            self._outside.measured(self.measure())

    # --- a step's tensors come in ---

    def _arrived(self, header: Header, array: Array) -> None:
        number, name = header.sequence, self._program.layouts[header.tensor].name
        sequence = self._sequences.get(number)
        if sequence is None:
            if self._sequences.was_closed(number):
                return
            raise ProtocolError(f"tensor {name} of sequence {number}, which was never opened")
        index = self._program.segment_of[header.tensor]
        if header.tensor in self._segments[index].only_last and not header.flags & FINAL:
            return
        if sequence.frontier[index] > header.position:
            raise ProtocolError(f"tensor {name} of sequence {number} at {header.position} came twice")
        step = self._step(sequence, number, header.position, header.rows, header.flags & ~ONE_ROW)
        if header.tensor in step.values:
            raise ProtocolError(f"tensor {name} of sequence {number} at {header.position} came twice")
        step.values[header.tensor] = self._library.wrap(array)
        self._advance(number, sequence)

    def _fed(self, event: Fed) -> None:
        sequence = self._sequences.get(event.sequence)
        if sequence is None:
            raise RunError("R402", f"sequence {event.sequence} is not open", INTERNAL)
        step = self._step(sequence, event.sequence, event.position, event.ids.shape[1], event.flags)
        step.values[self._program.input_ids] = self._library.wrap(event.ids)
        self._advance(event.sequence, sequence)

    def _step(self, sequence: Sequence, number: int, position: int, rows: int, flags: int) -> StepState:
        step = sequence.steps.get(position)
        if step is None:
            if len(sequence.steps) >= MAX_STEPS:
                raise ProtocolError(f"sequence {number} has {MAX_STEPS} steps under way, no more are taken")
            positions = empty((1, rows), "int64")
            positions[0] = np.arange(position, position + rows)
            step = StepState(
                position, rows, flags, {self._program.position_ids: self._library.wrap(positions)}
            )
            sequence.steps[position] = step
        elif (step.rows, step.flags) != (rows, flags):
            raise ProtocolError(
                f"the step of sequence {number} at {position} has {step.rows} rows, then {rows}"
                f" (flags {step.flags}, then {flags})"
            )
        return step

    # --- and what has all it needs runs ---

    def _advance(self, number: int, sequence: Sequence) -> None:
        # In order of positions: what a step completes may let the next one run, never an earlier one.
        for position in sorted(sequence.steps):
            step = sequence.steps[position]
            while step.cursor < len(self._segments) and self._ready(sequence, step):
                for operation in self._segments[step.cursor].operations:
                    self._perform(operation, number, sequence, step)
                sequence.frontier[step.cursor] = position + step.rows
                step.cursor += 1
            if step.cursor == len(self._segments):
                del sequence.steps[position]
                self._outside.step_done(number, position, self._figures(self._peak_bytes))

    def _ready(self, sequence: Sequence, step: StepState) -> bool:
        segment = self._segments[step.cursor]
        waits = segment.waits if step.flags & FINAL else segment.waits_early
        frontier = sequence.frontier[step.cursor]
        # A device that only has rows of the last chunk to compute never hears of the others.
        in_order = frontier == step.position or not self._program.every_chunk
        return in_order and step.values.keys() >= waits

    def _perform(
        self, operation: Call | Send | Release, number: int, sequence: Sequence, step: StepState
    ) -> None:
        if isinstance(operation, Call):
            if not operation.last or step.flags & FINAL:
                self._call(operation, number, sequence, step)
        elif isinstance(operation, Send):
            if operation.rows == "all" or step.flags & FINAL:
                self._send(operation, number, step)
        else:
            step.values.pop(operation.tensor, None)

    def _call(self, call: Call, number: int, sequence: Sequence, step: StepState) -> None:
        last = call.last and not step.flags & ALL_ROWS and step.rows > 1
        inputs = [step.values[tensor] for tensor in call.inputs]
        if last:
            inputs = [self._last_row(t, v) for t, v in zip(call.inputs, inputs, strict=True)]
        caches: tuple[Any, ...] = ()
        if call.stateful and call.block is not None:
            caches = (sequence.slots, *self._sequences.caches(call.block))
        function = call.decode if last or step.rows == 1 else call.prefill
        start = time.perf_counter()
        try:
            result = function(*inputs, *call.params, *caches)
        except (RuntimeError, ValueError, TypeError) as error:
            where = "" if call.block is None else f" of block {call.block}"
            raise RunError("R501", f"template {call.template}{where} failed: {error}", INTERNAL) from error
        self._compute_s += time.perf_counter() - start
        outputs = (result,) if len(call.outputs) == 1 else result
        for tensor, value in zip(call.outputs, outputs, strict=True):
            step.values[tensor] = value
        if self._program.logits in call.outputs:
            rows = self._library.unwrap(step.values[self._program.logits])
            self._outside.logits(number, step.position, rows)

    def _last_row(self, tensor: int, value: Any) -> Any:
        array = self._library.unwrap(value)
        axis = self._program.layouts[tensor].axis
        if array.shape[axis] == 1:
            return value
        return self._library.wrap(aligned_copy(_last(array, axis)))

    def _send(self, send: Send, number: int, step: StepState) -> None:
        layout = self._program.layouts[send.tensor]
        array = self._library.unwrap(step.values[send.tensor])
        if send.rows == "last" and not step.flags & ALL_ROWS:
            array = _last(array, layout.axis)
        array = np.ascontiguousarray(array)
        rows = array.shape[layout.axis]
        if array.nbytes != rows * layout.row_bytes or rows not in (1, step.rows):
            raise RunError("R501", f"tensor {layout.name} came out as {array.dtype} {array.shape}", INTERNAL)
        flags = step.flags | (ONE_ROW if rows == 1 else 0)
        header = Header(
            TENSOR, flags, layout.code, self._program.epoch, number, step.position, step.rows, send.tensor,
            array.nbytes,
        )  # fmt: skip
        self._outside.send(send.destination, pack_header(header), array.data.cast("B"))
        self._sent_bytes += HEADER_BYTES + array.nbytes

    # --- figures ---

    def measure(self) -> Figures:
        """The figures now, memory read anew."""
        self._peak_bytes = peak_bytes()
        return self._figures(self._peak_bytes)

    def _figures(self, peak: int) -> Figures:
        return Figures(self._compute_s, self._wait_s, self._sent_bytes, peak)


def _last(array: Array, axis: int) -> Array:
    return array[(slice(None),) * axis + (slice(-1, None),)]


def _bind(segment: Segment, blocks: Mapping[int, Block], library: Library) -> Bound:
    return Bound(
        waits=segment.waits,
        only_last=segment.waits_last,
        waits_early=segment.waits - segment.waits_last,
        operations=tuple(
            _call_of(step, blocks, library) if isinstance(step, Run) else step for step in segment.operations
        ),
    )


def _call_of(run: Run, blocks: Mapping[int, Block], library: Library) -> Call:
    block = None if run.block is None else blocks[run.block]
    return Call(
        template=run.template,
        block=run.block,
        decode=library.functions[f"{run.template}_decode"],
        prefill=library.functions[f"{run.template}_prefill"],
        inputs=run.inputs,
        outputs=run.outputs,
        params=block.params if block else (),
        stateful=bool(block and block.entry.caches),
        last=run.rows == "last",
    )
