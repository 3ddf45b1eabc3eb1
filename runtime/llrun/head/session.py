"""The head of a session: connects the devices, feeds sequences, and collects logits and figures."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

from llrun.device.load import Device
from llrun.engine.engine import Engine
from llrun.engine.events import Asking, Closing, Event, Fed, Feed, Inbox, Opening, Stop
from llrun.errors import INTERNAL, RunError
from llrun.head.controls import Controls, Logits, Note, Reply, cause_of, failure_of, silent
from llrun.head.feeding import Feeding
from llrun.head.history import History
from llrun.memory import Array
from llrun.programs.installed import Installed
from llrun.schema import MAX_BATCH
from llrun.wire.links import Links
from llrun.wire.messages import (
    AnyMessage,
    AskFigures,
    Close,
    Configure,
    Configured,
    Connect,
    Figures,
    Halted,
    Held,
    Measured,
    Message,
    Open,
    Opened,
    Ready,
    Rejected,
    StepDone,
    StepsDone,
)
from llrun.wire.transport import Transport

COMPUTE_END_S = 5.0
NOWHERE = "0.0.0.0:0"  # the head listens nowhere
Ids = Sequence[int]


class Outbound:
    """The engine's outside on the head: tensors to neighbours, everything else to the driver."""

    def __init__(self, device: str, links: Links, replies: SimpleQueue[Reply]) -> None:
        self._device = device
        self._links = links
        self._replies = replies

    def send(self, destination: str, header: bytes, payload: memoryview) -> None:
        self._links.send(destination, header, payload)

    def opened(self, sequence: int, figures: Figures) -> None:
        self._replies.put((self._device, Opened(sequence, figures)))

    def halted(self, epoch: int, held: tuple[Held, ...]) -> None:
        self._replies.put((self._device, Halted(epoch, held)))

    def switched(self, installed: Installed) -> None:
        self._links.install(installed)

    def rejected(self, sequence: int, reason: str) -> None:
        self._replies.put((self._device, Rejected(sequence, "R402", reason)))

    def steps_done(self, steps: Sequence[StepDone], figures: Figures) -> None:
        self._replies.put((self._device, StepsDone(tuple(steps), figures)))

    def measured(self, figures: Figures) -> None:
        self._replies.put((self._device, Measured(figures)))

    def logits(self, steps: Sequence[tuple[int, int]], rows: Array) -> None:
        matrix = rows.reshape(-1, rows.shape[-1]).astype(np.float32, copy=False)
        each = len(matrix) // len(steps)  # a row of each of several steps, or all rows of one
        self._replies.put([Logits(*step, matrix[i * each : (i + 1) * each]) for i, step in enumerate(steps)])


class Session:
    """All devices of a bundle, connected and ready. Use as a context manager, from one thread; `wake` alone
    may be called from any.

    A sequence is opened, its history extended with token ids, and fed; the logits of each feed's last token
    (`all_rows`: of every token) come in the order in which they are computed, those of all sequences mixed.
    `requests.scheduler` makes conversations of that. `timeout_s` bounds every wait for progress, that for
    a worker that has not come yet included; `note` is told whom it waits for. A device
    that refuses a sequence refuses that one alone; any RunError of `take` ends the session.
    """

    def __init__(
        self,
        device: Device,
        transport: Transport,
        addresses: Mapping[str, str],
        timeout_s: float,
        note: Note = silent,
    ) -> None:
        self._device = device
        self._timeout_s = timeout_s
        self._replies: SimpleQueue[Reply] = SimpleQueue()
        inbox = Inbox()
        self._links = Links(device.installed, device.limits, inbox.deliver, self._replies.put)
        outbound = Outbound(device.name, self._links, self._replies)
        self._engine = Engine(device, outbound, inbox)
        chosen = {name: addresses[name] for name in workers_of(device)}
        self._controls = Controls(
            device.record.bundle, device.name, transport, chosen, self._replies, timeout_s, note
        )
        self._compute = threading.Thread(target=self._run_engine, name="compute", daemon=True)
        self._devices = (device.name, *chosen)
        self._feeding = Feeding(device.record.model, len(self._devices))
        self._next = 0
        self._opening: dict[int, set[str]] = {}  # sequences, and the devices that have not said anything yet
        self._refused: dict[int, RunError] = {}
        self._ready: deque[Logits] = deque()
        self._done: dict[str, tuple[StepDone, ...]] = {}  # what each did last
        self._asked = 0
        self._answered = dict.fromkeys(self._devices, 0)
        self.sequences = self._engine.capacity  # how many there is room for on every device
        self.figures: dict[str, Figures] = {}

    def __enter__(self) -> Session:
        try:
            self._connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def device(self) -> Device:
        return self._device

    @property
    def batch(self) -> int:
        """Tokens of so many sequences are computed in one pass."""
        return min(MAX_BATCH, self._device.record.model.shapes.chunk)

    # --- sequences ---

    def begin(self) -> int:
        """Ask every device to make room for a sequence; its number. It may be fed once it `is_open`."""
        number = self._next
        self._next += 1
        self._opening[number] = set(self._devices)
        self._tell(Open(number), Opening(number))
        return number

    def is_open(self, number: int) -> bool:
        """Whether every device has made room. Raises the RunError of a device that has none."""
        if number in self._refused:
            raise self._refused.pop(number)
        return number in self._feeding

    def open(self) -> int:
        """Make room for a sequence on every device; its number. Raises the RunError of one that has none."""
        number = self.begin()
        while not self.is_open(number):
            self.take()
        return number

    def close_sequence(self, number: int) -> None:
        """Forget the sequence, and of its tokens those that have not been computed yet."""
        self._opening.pop(number, None)
        self._refused.pop(number, None)
        self._feeding.forget(number)
        self._ready = deque(logits for logits in self._ready if logits.sequence != number)
        self._tell(Close(number), Closing(number))
        self._go(self._feeding.release())

    def history(self, number: int) -> History:
        """The sequence's tokens so far: extend it, then feed."""
        return self._feeding.history(number)

    def feed(self, numbers: Iterable[int], all_rows: bool = False) -> None:
        """Of each sequence, have computed what its history holds that was not fed before: in chunks, of which
        those beyond what may be under way wait here, not on the devices; single tokens of several sequences
        in one pass, or in as many as their number takes. Raises RunError R105 beyond the context."""
        self._go(self._feeding.add(numbers, all_rows))

    def withdraw(self, number: int) -> None:
        """Feed no more of what waits here; it stays in the history, and goes with what is fed next."""
        self._feeding.withdraw(number)

    def logits(self, ids: Ids) -> NDArray[np.float32]:
        """Logits (n, vocabulary) at every one of n token ids, as a new sequence."""
        number = self.open()
        self.history(number).extend(ids)
        self.feed([number], all_rows=True)
        rows: dict[int, NDArray[np.float32]] = {}
        while sum(map(len, rows.values())) < len(ids):
            self.take()
            rows |= {logits.position: logits.rows for logits in self._ready if logits.sequence == number}
        self.close_sequence(number)
        return np.concatenate([rows[position] for position in sorted(rows)])

    # --- figures ---

    def ask(self) -> int:
        """Ask every device for its figures, those of memory read anew; the number of this asking."""
        self._asked += 1
        self._tell(AskFigures(), Asking())
        return self._asked

    @property
    def answered(self) -> int:
        """The newest asking that every device has answered."""
        return min(self._answered.values())

    def measure(self) -> dict[str, Figures]:
        """Every device's figures now."""
        asked = self.ask()
        while self.answered < asked:
            self.take()
        return dict(self.figures)

    # --- what comes back ---

    def pop_logits(self) -> Logits | None:
        """The oldest logits that nobody has taken; of a sequence that was closed since, none."""
        return self._ready.popleft() if self._ready else None

    def wake(self) -> None:
        """Have `take` return. From any thread, and from a signal's handler."""
        self._replies.put([])

    def take(self, bounded: bool = True) -> Reply:
        """Wait for a reply and take it in: logits and figures are kept, finished chunks make room.

        `bounded`: something is under way, so one is due. Raises RunError when a device is lost or
        nothing moves for too long.
        """
        try:
            reply = self._replies.get(timeout=self._timeout_s if bounded else None)
        except Empty:
            raise self._standstill() from None
        if isinstance(reply, list):
            for logits in reply:
                if logits.sequence in self._feeding:
                    self._ready.append(logits)
            return reply
        failure = failure_of(reply)
        if failure:
            raise cause_of(failure, self._replies)
        if isinstance(reply, tuple):
            self._heard(*reply)
        return reply

    def _heard(self, device: str, message: AnyMessage) -> None:
        match message:
            case StepsDone():
                self.figures[device] = message.figures
                self._done[device] = message.steps
                if self._feeding.under_way:
                    self._chunks_done(message.steps)
            case Measured():
                self.figures[device] = message.figures
                self._answered[device] += 1
            case Opened():
                self.figures[device] = message.figures
                self._opened(device, message.sequence)
            case Rejected():
                self._rejected(device, message)
            case Configured():
                self.sequences = min(self.sequences, message.sequences)
                if not message.every_chunk:
                    self._feeding.only_last(device)

    def _chunks_done(self, steps: Sequence[StepDone]) -> None:
        for step in steps:
            if self._feeding.done((step.sequence, step.position)):
                self._go(self._feeding.release())

    def _opened(self, device: str, number: int) -> None:
        if number in self._opening:  # else it was refused by another, or is not wanted any more
            self._opening[number].discard(device)
            if not self._opening[number]:
                del self._opening[number]
                self._feeding.begin(number)

    def _rejected(self, device: str, said: Rejected) -> None:
        """Those that have made room for it give it back."""
        if said.sequence in self._opening:
            reason = f"device {device} has no room for another conversation: {said.reason}"
            self.close_sequence(said.sequence)
            self._refused[said.sequence] = RunError(said.code, reason, INTERNAL)

    def _standstill(self) -> RunError:
        """Nothing moves though every device lives: name those that have not done the newest step."""
        newest = self._feeding.newest
        done = {
            device: {(step.sequence, step.position) for step in steps} for device, steps in self._done.items()
        }
        behind = [name for name in sorted(self._devices) if newest and newest not in done.get(name, ())]
        return RunError(
            "R305",
            f"nothing came from any device for {self._timeout_s:g} s (--timeout); the newest step is not done"
            f" on {', '.join(behind) or 'none'}",
            INTERNAL,
        )

    def _gather(self, kind: type[Message], due: int) -> None:
        """Take replies until `due` of `kind` have come."""
        while due:
            reply = self.take()
            due -= isinstance(reply, tuple) and isinstance(reply[1], kind)

    def _go(self, feeds: Sequence[Feed]) -> None:
        if feeds:
            self._engine.inbox.put(Fed(tuple(feeds)))

    def _tell(self, message: Message, event: Event) -> None:
        """Say it to every worker, and to the engine here."""
        self._engine.inbox.put(event)
        self._controls.tell(message)

    # --- setting up and ending ---

    def _connect(self) -> None:
        """Control connections, configuration, data connections: each step on all devices at once."""
        controls, installed = self._controls, self._engine.installed
        controls.connect()
        self._compute.start()
        controls.tell(
            Configure(controls.session, installed.epoch, {**controls.addresses, installed.device: NOWHERE})
        )
        self._gather(Configured, len(controls))
        controls.connect_data(installed, self._links)
        controls.tell(Connect())
        self._gather(Ready, len(controls))

    def _run_engine(self) -> None:
        try:
            self._engine.run()
        except RunError as error:
            self._replies.put(error)

    def close(self) -> None:
        """Say goodbye and end everything; safe to call in any state, more than once."""
        self._links.retire()
        self._controls.close()
        self._links.close()
        self._engine.inbox.put(Stop())
        if self._compute.is_alive():
            self._compute.join(COMPUTE_END_S)


def workers_of(device: Device) -> list[str]:
    """Every device of the plan but the head, by name."""
    return sorted(device.record.devices.keys() - {device.record.head})
