"""Executes a device's program: one thread, one inbox, segments run as soon as what they wait for is there."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from collections.abc import Sequence as Several
from typing import Protocol, assert_never

from llrun.device.load import Device
from llrun.engine.bind import BoundSegment, Parts, bind
from llrun.engine.events import (
    Arrived,
    Asking,
    Closing,
    Event,
    Fed,
    Feed,
    Halting,
    Inbox,
    Opening,
    Stop,
    Switch,
)
from llrun.engine.runner import FINAL, JoinedRow, Results, Runner, is_row
from llrun.engine.stores import Sequence, SequenceStore, StepState
from llrun.engine.switch import Turnstile
from llrun.errors import INTERNAL, RunError
from llrun.memory import peak_bytes
from llrun.programs.installed import Installed
from llrun.schema import MAX_BATCH
from llrun.wire.messages import Figures, Held, StepDone
from llrun.wire.protocol import AHEAD, ONE_ROW, REPLAY, Header, ProtocolError

MAX_STEPS = 64
MAX_RUNS = 8  # segments of which the seconds are told one by one: a group has two a layer


class Outside(Results, Protocol):
    """Where results go. Called from the engine's thread."""

    def opened(self, sequence: int, figures: Figures) -> None: ...
    def rejected(self, sequence: int, reason: str) -> None: ...
    def halted(self, epoch: int, held: tuple[Held, ...]) -> None: ...
    def switched(self, installed: Installed) -> None: ...
    def steps_done(self, steps: Several[StepDone], figures: Figures) -> None: ...
    def measured(self, figures: Figures) -> None: ...


class Engine:
    """One device's part of every step of one session.

    What has come in is taken before anything is run, and of the steps that can run those of which the same
    segment computes a single row run as one: up to MAX_BATCH sequences, their weights read once.

    `device` is injected: any mapping of callables over arrays serves as its library. `sequences`: where somebody else
    has to do with their caches. `installed`: the program that runs first, the slice's own where it is None. `inbox` is
    the only way in, and safe from any thread. A step's tensors and cursor are touched by the thread that calls `run`
    alone.
    """

    def __init__(
        self,
        device: Device,
        outside: Outside,
        inbox: Inbox,
        sequences: SequenceStore | None = None,
        installed: Installed | None = None,
    ) -> None:
        self.inbox = inbox
        self._blocks = device.blocks
        self._library = device.library
        self._outside = outside
        self.sequences = sequences or SequenceStore(device.record.blocks, device.library.wrap)
        self._turnstile = Turnstile()
        self._ready: deque[StepState] = deque()
        self._runner = Runner(installed or device.installed, device.library, outside)
        self._install(installed or device.installed, {})
        self._halted = False  # no step is there, and none begins before the next program
        self._stopped = False
        self._wait_s = 0.0
        self._idle_s = 0.0  # of that, what no step has been charged for yet
        self._peak_bytes = 0

    @property
    def installed(self) -> Installed:
        """The program that runs. Replaced as one value by the engine's thread."""
        return self._installed

    def run(self) -> None:
        """Handle events until Stop. Raises RunError: the stop's own, or what went wrong here."""
        try:
            while not self._stopped:
                start = time.perf_counter()
                event = self.inbox.get()
                idle_s = time.perf_counter() - start
                self._wait_s += idle_s
                self._idle_s += idle_s
                self._handle(event)
                self.settle()
        finally:
            self.inbox.close()

    def settle(self) -> None:
        """Take what has come in and run what can run, until nothing is left of either, without waiting."""
        while not self._stopped:
            if not self.inbox.empty():
                self._handle(self.inbox.get())
            elif self._ready:
                if self.sequences.several:
                    self.inbox.look()  # for rows that can be joined
                    if not self.inbox.empty():
                        continue
                self._run_next()
            elif not self._turnstile.waiting or not self._turn():
                return

    def _handle(self, event: Event) -> None:
        match event:
            case Arrived():
                if self._turnstile.sort(event, self._installed.epoch) and not self._halted:
                    self._arrived(event)
            case Fed():
                self._feed(event)
            case Opening():
                self._open(event)
            case Closing():
                self._close(event.sequence)
            case Asking():
                self._outside.measured(self.measure())
            case Halting():
                self._halt(event.epoch)
            case Switch():
                self._turnstile.announce(event, self._installed, self._blocks, self.sequences.numbers)
            case Stop():
                self._stopped = True
                if event.error:
                    raise event.error
            case _:
                assert_never(event)

    def _open(self, event: Opening) -> None:
        number = event.sequence
        reason = self.sequences.open(number, event.after, event.tokens)
        if reason is None:
            self._outside.opened(number, self.measure())
        else:
            self._outside.rejected(number, reason)

    def _close(self, number: int) -> None:
        """What of the sequence has not run yet never will."""
        self.sequences.close(number)
        self._ready = deque(step for step in self._ready if step.sequence.number != number)

    # --- programs ---

    def _install(self, installed: Installed, positions: Mapping[int, Several[int]]) -> None:
        """Run `installed` from now on; open sequences go on at `positions`."""
        self.sequences.prepare([segment.blocks for segment in installed.segments], positions)
        self._segments = bind(installed, Parts(self._blocks, self._library, self.sequences))
        self._runner.install(installed)
        self._installed = installed
        self._most = min(MAX_BATCH, installed.chunk)
        self._tells_runs = len(installed.segments) <= MAX_RUNS

    def _turn(self) -> bool:
        """Take up the program that waits, and what came for it, if no step is under way; whether it was."""
        turned = self._turnstile.turn() if self.sequences.idle else None
        if turned is None:
            return False
        switch, early = turned
        self._halted = False
        self._install(switch.installed, switch.positions)
        self._outside.switched(switch.installed)
        for event in early:
            self._handle(event)
        return True

    def _halt(self, epoch: int) -> None:
        """Drop every step, and begin none until the program of `epoch`. Raises RunError R207 when that is not next."""
        self._drop_steps()
        if self._turnstile.waiting:  # it was told first
            self._turn()
            self._drop_steps()
        if epoch != self._installed.epoch + 1:
            raise RunError(
                "R207", f"a halt for epoch {epoch}, the next is {self._installed.epoch + 1}", INTERNAL
            )
        self._halted = True
        self._outside.halted(epoch, self.sequences.held())

    def _drop_steps(self) -> None:
        self._ready.clear()
        for number in self.sequences.numbers:
            sequence = self.sequences.get(number)
            if sequence:
                sequence.steps.clear()

    # --- a step's tensors come in ---

    def _arrived(self, event: Arrived) -> None:
        tensor = event.headers[0].tensor
        if self._installed.sources.get(tensor) != event.source:
            name = self._installed.layouts[tensor].name
            raise ProtocolError(f"unexpected tensor {name} from device {event.source}")
        value = self._library.wrap(event.array)
        if len(event.headers) == 1:
            self._take(event.headers[0], value)
        else:
            for index, header in enumerate(event.headers):
                self._take(header, JoinedRow(value, index, len(event.headers)))

    def _take(self, header: Header, value: object) -> None:
        number, name = header.sequence, self._installed.layouts[header.tensor].name
        sequence = self.sequences.get(number)
        if sequence is None:
            if self.sequences.was_closed(number):
                return
            raise ProtocolError(f"tensor {name} of sequence {number}, which was never opened")
        index = self._installed.segment_of[header.tensor]
        if header.tensor in self._segments[index].only_last and not header.flags & FINAL:
            return
        if sequence.frontier[index] > header.position:
            if not header.flags & REPLAY:
                raise ProtocolError(f"tensor {name} of sequence {number} at {header.position} came twice")
            _check_past(sequence, index, header.position, header.rows)
            return
        step = self._step(sequence, header.position, header.rows, header.flags & ~ONE_ROW)
        if header.tensor in step.values:
            raise ProtocolError(f"tensor {name} of sequence {number} at {header.position} came twice")
        step.values[header.tensor] = value
        self._queue(step)

    def _feed(self, event: Fed) -> None:
        if self._turnstile.waiting or self._halted:
            self._turnstile.keep(event)
            return
        for feed in event.feeds:
            self._fed(feed)

    def _fed(self, feed: Feed) -> None:
        sequence = self.sequences.get(feed.sequence)
        if sequence is None and self.sequences.was_closed(feed.sequence):
            return  # closed while its tokens were kept for the next program
        if sequence is None:
            raise RunError("R402", f"sequence {feed.sequence} is not open", INTERNAL)
        flags = feed.flags
        if flags & REPLAY:
            flags &= ~FINAL
        step = self._step(sequence, feed.position, feed.ids.shape[1], flags)
        if step.cursor and step.cursor == len(self._segments):
            del sequence.steps[step.position]
            self._outside.steps_done([_done(step)], self._figures())
            return
        step.values[self._installed.input_ids] = self._library.wrap(feed.ids)
        self._queue(step)

    def _step(self, sequence: Sequence, position: int, rows: int, flags: int) -> StepState:
        step = sequence.steps.get(position)
        if step is None:
            if len(sequence.steps) >= MAX_STEPS:
                raise ProtocolError(
                    f"sequence {sequence.number} has {MAX_STEPS} steps under way, no more are taken"
                )
            step = StepState(sequence, position, rows, flags)
            if sequence.frontier[0] > position:
                self._pass_by(step)
            sequence.steps[position] = step
        elif (step.rows, step.flags) != (rows, flags):
            raise ProtocolError(
                f"the step of sequence {sequence.number} at {position} has {step.rows} rows, then {rows}"
                f" (flags {step.flags}, then {flags})"
            )
        return step

    def _pass_by(self, step: StepState) -> None:
        """Move on to the first segment that is not past the step. Raises ProtocolError where that is no replay."""
        frontier = step.sequence.frontier
        while step.cursor < len(frontier) and frontier[step.cursor] > step.position:
            if not step.flags & REPLAY:
                raise ProtocolError(
                    f"the step of sequence {step.sequence.number} at {step.position} was computed before"
                )
            _check_past(step.sequence, step.cursor, step.position, step.rows)
            if self._tells_runs:
                step.runs += (0.0,)
            step.cursor += 1

    # --- and what has all it needs runs ---

    def _queue(self, step: StepState) -> None:
        """Let the step run if it has all it needs."""
        segment, sequence = self._segments[step.cursor], step.sequence
        waits = segment.waits if step.flags & FINAL else segment.waits_early
        if step.flags & AHEAD:
            sequence.keep(step.cursor, step.position)
        # A device that only has rows of the last chunk to compute never hears of the others.
        in_order = sequence.frontier[step.cursor] == step.position or not self._installed.every_chunk
        if in_order and not step.queued and step.values.keys() >= waits:
            step.queued = True
            self._ready.append(step)

    def _run_next(self) -> None:
        """Run a segment for the step that has waited longest, and for those that can be joined with it."""
        steps = self._together()
        for step in steps:
            step.queued = False
        index, count = steps[0].cursor, len(self._segments)
        self._run_for(steps, self._segments[index])
        done = []
        for step in steps:
            sequence, stop = step.sequence, step.position + step.rows
            sequence.ran(index, step)
            step.cursor += 1
            if step.cursor < count and sequence.frontier[step.cursor] > step.position:
                self._pass_by(step)
            if step.cursor == count:
                del sequence.steps[step.position]
                done.append(_done(step))
            else:
                self._queue(step)
            following = sequence.steps.get(stop)
            if following and following.cursor == index:
                self._queue(following)
        if done:
            self._outside.steps_done(done, self._figures())

    def _run_for(self, steps: Several[StepState], segment: BoundSegment) -> None:
        """Run it, and charge the steps for it, for the idle time that ended with it, and for that in which weights were
        awaited: equal shares, as each of several has one row there. The first bears what bytes are left over."""
        runner, count = self._runner, len(steps)
        compute_s, send_s, sent_bytes = runner.compute_s, runner.send_s, runner.sent_bytes
        load_s = runner.load_s
        runner.run(segment, steps)
        compute_s, send_s = runner.compute_s - compute_s, runner.send_s - send_s
        sent_bytes = runner.sent_bytes - sent_bytes
        load_s = runner.load_s - load_s
        self._wait_s += load_s
        idle_s, self._idle_s = self._idle_s + load_s, 0.0
        if count > 1:
            steps[0].sent_bytes += sent_bytes % count
            compute_s, idle_s, send_s = compute_s / count, idle_s / count, send_s / count
            sent_bytes //= count
        for step in steps:
            if self._tells_runs:
                step.runs += (compute_s,)
            step.compute_s += compute_s
            step.wait_s += idle_s
            step.send_s += send_s
            step.sent_bytes += sent_bytes

    def _together(self) -> list[StepState]:
        """The step that has waited longest; with it others whose single row the same segment computes, of each
        sequence one, in order of sequences: so rows that came joined are found as they came."""
        first = self._ready.popleft()
        segment = self._segments[first.cursor]
        if not self._ready or not is_row(segment, first):
            return [first]
        steps, left = {first.sequence.number: first}, deque[StepState]()
        for step in self._ready:
            fits = len(steps) < self._most and step.cursor == first.cursor and is_row(segment, step)
            if fits and step.sequence.number not in steps:
                steps[step.sequence.number] = step
            else:
                left.append(step)
        self._ready = left
        return [steps[number] for number in sorted(steps)]

    # --- figures ---

    @property
    def capacity(self) -> int:
        """How many sequences there is room for."""
        return self.sequences.capacity

    def measure(self) -> Figures:
        """The figures now, memory read anew."""
        self._peak_bytes = peak_bytes()
        return self._figures()

    def _figures(self) -> Figures:
        runner = self._runner
        return Figures(runner.compute_s, self._wait_s, runner.sent_bytes, self._peak_bytes)


def _done(step: StepState) -> StepDone:
    cost = step.compute_s, step.wait_s, step.sent_bytes, step.send_s, step.runs
    return StepDone(step.sequence.number, step.position, *cost)


def _check_past(sequence: Sequence, index: int, position: int, rows: int) -> None:
    """Raises ProtocolError for a step of which segment `index` has done a part alone."""
    if sequence.frontier[index] < position + rows:
        raise ProtocolError(
            f"the step of sequence {sequence.number} at {position} has {rows} rows, of which segment {index} has done"
            f" {sequence.frontier[index] - position}: it must end at {sequence.frontier[index]}"
        )
