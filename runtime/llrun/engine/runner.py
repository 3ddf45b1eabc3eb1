"""Runs a segment: for one step alone, or once for the single rows of several sequences, joined."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, assert_never

import numpy as np

from llrun.device.library import Library
from llrun.device.window import Window
from llrun.engine.bind import BoundSegment, Call
from llrun.engine.stores import StepState
from llrun.errors import INTERNAL, RunError
from llrun.memory import Array, aligned_copy, empty
from llrun.programs.installed import Installed
from llrun.programs.layouts import Layout
from llrun.schema import Release, Rows, Send
from llrun.wire.coding import Bytes, decode, encode
from llrun.wire.protocol import ALL_ROWS, LAST_CHUNK, ONE_ROW, TENSOR, Header, pack_rows, pack_tensor

FINAL = LAST_CHUNK | ALL_ROWS
ALONE, CHUNK, JOINED = 0, 1, 2  # KINDS for one row of one sequence; several of one; one of each of several
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


def is_row(segment: BoundSegment, step: StepState) -> bool:
    """Whether `segment` computes a single row of `step`, which can be joined with others' rows."""
    flags = step.flags
    return bool(flags & FINAL) and (step.rows == 1 or (segment.one_row and not flags & ALL_ROWS))


@dataclass
class Pass:
    """Steps that a segment runs for, the tensors at hand, and how its functions are to be called. `narrow`:
    a prompt's last chunk, of which `last` actions take the last row. `coded`: what was made here, as it travels."""

    steps: Steps
    values: dict[int, Any]
    kind: int
    narrow: bool
    slots: Any
    coded: dict[int, Bytes] = field(default_factory=dict)


class Runner:
    """Runs segments. `compute_s`: seconds spent so, sends aside, which are in `send_s`, and waiting for weights that
    stream, which is in `load_s`; `sent_bytes`: with headers."""

    def __init__(self, installed: Installed, library: Library, outside: Results) -> None:
        self._installed = installed
        self._library = library
        self._outside = outside
        self._since = 0.0
        self.compute_s = 0.0
        self.send_s = 0.0
        self.load_s = 0.0
        self.sent_bytes = 0

    def install(self, installed: Installed) -> None:
        """Run segments of `installed` from now on."""
        self._installed = installed

    def run(self, segment: BoundSegment, steps: Steps) -> None:
        """Run `segment` for one step, or for several of which it computes one row each (`is_row`)."""
        self._since = time.perf_counter()
        current = self._joined(segment, steps) if len(steps) > 1 else self._alone(segment, steps[0])
        for action in segment.actions if steps[0].flags & FINAL else segment.early:
            match action:
                case Call():
                    self._call(action, current)
                case Send():
                    self._send(action, current)
                case Release():
                    current.values.pop(action.tensor, None)
                case _:
                    assert_never(action)
        if len(steps) > 1:
            _split(segment, current)
        self.compute_s += time.perf_counter() - self._since

    # --- tensors at hand ---

    def _alone(self, segment: BoundSegment, step: StepState) -> Pass:
        values = step.values
        for tensor in segment.reads:
            value = values.get(tensor)
            if isinstance(value, JoinedRow):
                values[tensor] = self._library.wrap(aligned_copy(self._row(tensor, value)))
        if segment.positions:
            positions = np.arange(step.position, step.position + step.rows)
            values[self._installed.position_ids] = self._integers(positions[None])
        narrow = step.rows > 1 and step.flags & FINAL == LAST_CHUNK
        return Pass((step,), values, ALONE if step.rows == 1 else CHUNK, narrow, step.sequence.slots)

    def _joined(self, segment: BoundSegment, steps: Steps) -> Pass:
        values = {tensor: self._join(tensor, steps) for tensor in segment.reads}
        if segment.positions:
            positions = np.array([[step.position + step.rows - 1 for step in steps]])
            values[self._installed.position_ids] = self._integers(positions)
        slots = None
        if segment.stateful:
            slots = self._integers(np.array([step.sequence.slot for step in steps]))
        return Pass(steps, values, JOINED, False, slots)

    def _join(self, tensor: int, steps: Steps) -> Any:
        """The steps' rows of a tensor as one. Rows that were joined so before are not copied."""
        parts = [step.values[tensor] for step in steps]
        if _is_whole(parts):
            return parts[0].tensor
        layout, count = self._installed.layouts[tensor], len(steps)
        joined = empty(layout.dims(count), layout.dtype)
        np.concatenate([self._row(tensor, part) for part in parts], layout.axis, out=joined)
        return self._library.wrap(joined)

    def _row(self, tensor: int, value: Any) -> Array:
        """The row a value stands for, of a chunk's the last, its axis kept."""
        axis = self._installed.layouts[tensor].axis
        if isinstance(value, JoinedRow):
            array = self._library.unwrap(value.tensor)
            return array[(slice(None),) * axis + (slice(value.index, value.index + 1),)]
        return _last(self._library.unwrap(value), axis)

    def _integers(self, numbers: Array) -> Any:
        array = empty(numbers.shape, "int64")
        array[...] = numbers
        return self._library.wrap(array)

    # --- actions ---

    def _call(self, call: Call, current: Pass) -> None:
        inputs = [current.values[tensor] for tensor in call.inputs]
        function = call.functions[current.kind]
        if current.narrow and call.last:
            inputs = [self._last_row(*pair) for pair in zip(call.inputs, inputs, strict=True)]
            function = call.functions[ALONE]
        params = call.params if call.window is None else self._taken(call.window, call.block)
        try:
            if call.caches:
                result = function(*inputs, *params, current.slots, *call.caches)
            else:
                result = function(*inputs, *params)
        except (RuntimeError, ValueError, TypeError) as error:
            where = "" if call.block is None else f" of block {call.block}"
            raise RunError("R501", f"template {call.template}{where} failed: {error}", INTERNAL) from error
        if call.window:
            call.window.done()
        if len(call.outputs) == 1:
            current.values[call.outputs[0]] = result
        else:
            current.values.update(zip(call.outputs, result, strict=True))
        for tensor in call.rounded:
            self._round(tensor, current)
        if call.logits:
            rows = self._library.unwrap(current.values[self._installed.logits])
            self._outside.logits([(step.sequence.number, step.position) for step in current.steps], rows)

    def _taken(self, window: Window, block: int | None) -> tuple[Any, ...]:
        """The params of a block that streams, once they have been read."""
        assert block is not None
        before = time.perf_counter()
        self.compute_s += before - self._since
        params = window.take(block)
        self._since = time.perf_counter()
        self.load_s += self._since - before
        return params

    def _round(self, tensor: int, current: Pass) -> None:
        """Have of a tensor what a device has that it travels to, also where it stays here."""
        layout, array = self._made(tensor, current)
        current.coded[tensor] = coded = encode(layout, array)
        current.values[tensor] = self._library.wrap(decode(layout, coded))

    def _last_row(self, tensor: int, value: Any) -> Any:
        array = self._library.unwrap(value)
        axis = self._installed.layouts[tensor].axis
        return value if array.shape[axis] == 1 else self._library.wrap(aligned_copy(_last(array, axis)))

    def _made(self, tensor: int, current: Pass) -> tuple[Layout, Array]:
        """A tensor that is at hand, and how it should look. Raises RunError R501 for one that does not."""
        layout = self._installed.layouts[tensor]
        array, count = self._library.unwrap(current.values[tensor]), len(current.steps)
        rows = array.shape[layout.axis]
        due = (count,) if count > 1 else (1, current.steps[0].rows)
        if array.nbytes != rows * layout.row_bytes or rows not in due:
            raise RunError("R501", f"tensor {layout.name} came out as {array.dtype} {array.shape}", INTERNAL)
        return layout, array

    def _send(self, send: Send, current: Pass) -> None:
        layout, array = self._made(send.tensor, current)
        payload: Array
        if layout.coded:
            coded = current.coded.get(send.tensor)
            payload = (
                encode(layout, array) if coded is None else coded
            )  # what was received is coded as it was
            payload = payload[-1:] if current.narrow and send.rows == Rows.LAST else payload
        else:
            array = _last(array, layout.axis) if current.narrow and send.rows == Rows.LAST else array
            payload = np.ascontiguousarray(array)
        rows = payload.nbytes // layout.wire_bytes
        header = self._header(send.tensor, layout.code, current.steps, rows, payload.nbytes)
        before = time.perf_counter()
        self.compute_s += before - self._since
        self._outside.send(send.destination, header, payload.data.cast("B"))
        self._since = time.perf_counter()
        self.send_s += self._since - before
        self.sent_bytes += len(header) + payload.nbytes

    def _header(self, tensor: int, code: int, steps: Steps, rows: int, size: int) -> bytes:
        """What goes before the bytes of `rows` rows: a header, for several steps with a table."""
        count = len(steps)
        if count == 1:
            step, flag = steps[0], ONE_ROW if rows == 1 else 0
            where = self._installed.epoch, step.sequence.number, step.position, step.rows, tensor
            return pack_tensor(step.flags | flag, code, *where, size)
        headers = [
            Header(
                TENSOR,
                step.flags | (ONE_ROW if rows == count else 0),
                code,
                self._installed.epoch,
                step.sequence.number,
                step.position,
                step.rows,
                tensor,
                size // count,
            )
            for step in steps
        ]
        return pack_rows(headers)


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


def _split(segment: BoundSegment, current: Pass) -> None:
    """Leave with each step what later segments use: its rows of what was joined, and what only waits."""
    left = segment.left(current.values)
    for index, step in enumerate(current.steps):
        step.values = segment.left(step.values)
        step.values.update(
            (tensor, JoinedRow(value, index, len(current.steps))) for tensor, value in left.items()
        )


def _last(array: Array, axis: int) -> Array:
    return array[(slice(None),) * axis + (slice(-1, None),)]
