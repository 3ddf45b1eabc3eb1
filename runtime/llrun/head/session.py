"""The head of a session: connects the devices, feeds sequences, and collects logits and figures."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

from llrun.device.load import Device
from llrun.engine.caches import Caches
from llrun.engine.engine import Engine
from llrun.engine.events import Asking, Closing, Event, Fed, Feed, Inbox, Stop
from llrun.engine.part import Part
from llrun.errors import RunError
from llrun.head.balancer import Balancer
from llrun.head.changes import Changes
from llrun.head.cluster import Cluster
from llrun.head.controls import Controls, Note, silent
from llrun.head.feeding import NO_DRAFTS, Feeding
from llrun.head.history import History
from llrun.head.loss_words import standstill
from llrun.head.membership import Membership
from llrun.head.monitor import Monitor
from llrun.head.moves import Move
from llrun.head.openings import Openings, Parked
from llrun.head.options import Balancing
from llrun.head.outbound import Outbound
from llrun.head.present import Present, present_of
from llrun.head.readings import Readings
from llrun.head.replies import Logits, Reply, Said, Unlinked
from llrun.head.view import EventKind
from llrun.programs.placement import LinkRate, Placement
from llrun.schema import MAX_BATCH
from llrun.wire.links import Links
from llrun.wire.messages import (
    AnyMessage,
    AskFigures,
    Close,
    Figures,
    Measured,
    Message,
    Opened,
    Rejected,
    StepDone,
    StepsDone,
)
from llrun.wire.pump import Pump
from llrun.wire.transfers import Transfers
from llrun.wire.transport import Transport

COMPUTE_END_S = 5.0
ASK_S = 1.0  # between two askings for what the monitor keeps
SLICE_S = 0.05  # of waiting: Ctrl-C that comes just before a wait is heeded after it
Ids = Sequence[int]


class Session:
    """All devices of a bundle, connected and ready. Use as a context manager, from one thread; `wake` alone
    may be called from any.

    A sequence is opened, its history extended with token ids, and fed; the logits of each feed's last token
    (`all_rows`: of every token) come in the order in which they are computed, those of all sequences mixed.
    `requests.scheduler` makes conversations of that. `timeout_s` bounds every wait for progress, that for
    a worker that has not come yet included; `note` is told whom it waits for, and of every loss and move. A device
    that refuses a sequence refuses that one alone. A device that is lost is replaced, or waited for, as `balancing`
    says; any RunError of `take` ends the session.
    """

    def __init__(
        self,
        device: Device,
        transport: Transport,
        addresses: Mapping[str, str],
        timeout_s: float,
        note: Note = silent,
        balancing: Balancing | None = None,
    ) -> None:
        balancing = balancing or Balancing()
        record = device.record
        self._device = device
        self._timeout_s = timeout_s
        self._replies: SimpleQueue[Reply] = SimpleQueue()
        inbox, told = Inbox(Pump()), (self._replies.put, self._unlinked)
        outbound = Outbound(device.name, self._replies)
        self._engine = Engine(device, outbound, inbox)
        transfers = Transfers(
            Caches(self._engine.sequences), record.model.shapes.context, outbound.send, outbound.copied
        )
        self._links = Links(device.installed, device.limits, inbox.deliver, *told, transfers, inbox.pump)
        chosen = {name: addresses[name] for name in sorted(record.devices.keys() - {record.head})}
        controls = Controls(record.bundle, device.name, transport, chosen, self._replies, note)
        own = Part(
            device, self._engine, self._links, transfers, lambda _: True, controls.dial_data, outbound.reply
        )
        outbound.attach(self._links, transfers, own)
        planned = {
            (k.source, k.destination): LinkRate(k.latency_s, k.bytes_per_s) for k in record.envelope.links
        }
        monitor = Monitor(record.stages, Placement.of(record).seconds_of(record.stages), planned)
        self._cluster = Cluster(
            record, controls, own, monitor, {device.name}, record.stages, device.installed.epoch
        )
        self._compute = threading.Thread(target=self._run_engine, name="compute", daemon=True)
        self._feeding = Feeding(record.model, self._cluster.portion)
        self._openings = Openings(self._cluster, self._feeding, self._tell)
        self._changes = Changes(self._cluster, self._feeding, self._openings, balancing, note, self._go)
        self._members = Membership(
            self._cluster, self._changes, self._feeding, self.open_numbers, self._parted, self._links, note
        )
        self._mirrored = balancing.mirror
        self._balancer = Balancer(self._cluster, self._changes, self._feeding, balancing, note)
        self._ready: deque[Logits] = deque()
        self._done: dict[str, tuple[StepDone, ...]] = {}  # what each did last
        self._asked, self._ask_at = 0, 0.0
        self._answered: dict[str, int] = {device.name: 0}
        self.sequences = self._engine.capacity  # how many there is room for on every device
        self.figures: dict[str, Figures] = {}

    def __enter__(self) -> Session:
        try:
            self._compute.start()
            self._members.connect(self._replies, self._timeout_s, self._take_in)
            self._changes.link_mirrors()
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

    @property
    def moves(self) -> Sequence[Move]:
        """The changes of stages so far, the newest 1000."""
        return self._changes.moves

    @property
    def readings(self) -> Readings:
        """What devices and links took lately."""
        return self._cluster.monitor.readings()

    @property
    def present(self) -> Present:
        """What it does now."""
        return present_of(self._cluster, self._changes)

    @property
    def recovering(self) -> bool:
        """Whether tokens stand still because of a device that was lost."""
        return self._changes.recovering

    # --- sequences ---

    @property
    def parked(self) -> Mapping[int, Parked]:
        """Sequences that can be gone on from, the oldest first. With --mirror there are none: copies of what they hold
        would be on their way while others take it over."""
        return self._openings.parked

    def begin(self, after: int | None = None, tokens: int = 0) -> int:
        """Ask every device to make room for a sequence; its number. It may be fed once it `is_open`.

        `after`: a parked one that it goes on from, after its first `tokens`: its history has those, unless a change of
        stages came between.
        """
        return self._openings.begin(after, tokens)

    def is_open(self, number: int) -> bool:
        """Whether every device has made room. Raises the RunError of a device that has none."""
        return self._openings.is_open(number)

    def open(self) -> int:
        """Make room for a sequence on every device; its number. Raises the RunError of one that has none."""
        number = self.begin()
        while not self.is_open(number):
            self.take()
        return number

    def close_sequence(self, number: int) -> None:
        """Forget the sequence, and of its tokens those that have not been computed yet."""
        self._openings.forget(number)
        self._feeding.forget(number)
        self._ready = deque(logits for logits in self._ready if logits.sequence != number)
        self._tell(Close(number), Closing(number))
        self._go(self._feeding.release())

    def park(self, number: int) -> None:
        """Nobody uses the sequence any more, of which nothing is under way: keep what the devices hold of it."""
        if self._mirrored:
            self.close_sequence(number)
        else:
            self._openings.park(number)

    def drop(self, number: int) -> None:
        """Give a parked sequence up."""
        self._openings.drop(number)

    def history(self, number: int) -> History:
        """The sequence's tokens so far: extend it, then feed."""
        return self._feeding.history(number)

    def open_numbers(self) -> list[int]:
        """Every sequence that is open, or is being opened. From any thread."""
        return self._openings.numbers

    def feed(
        self, numbers: Iterable[int], all_rows: bool = False, drafts: Mapping[int, Ids] = NO_DRAFTS
    ) -> None:
        """Of each sequence, have computed what its history holds that was not fed before: in chunks, of which
        those beyond what may be under way wait here, not on the devices; single tokens of several sequences
        in one pass, or in as many as their number takes; `drafts` with guesses at what follows (logits of each
        are due then). Raises RunError R105 beyond the context."""
        self._go(self._feeding.add(numbers, all_rows, drafts))

    def came(self, tokens: int) -> None:
        """Count tokens that were guessed, beside those that logits came for."""
        self._changes.tokens += tokens

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
        self._ask_at = time.monotonic() + ASK_S
        self._tell(AskFigures(), Asking())
        return self._asked

    @property
    def answered(self) -> int:
        """The newest asking that every device has answered."""
        return min(self._answered.get(device, self._asked) for device in self._cluster.alive)

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

        `bounded`: something is under way, so one is due. Raises RunError when a device is lost that nothing can
        replace, or nothing moves for too long.
        """
        until = time.monotonic() + self._timeout_s if bounded else None
        while True:
            reply = self._next_reply(until)
            if reply is not None:
                self._take_in(reply)
                self._look_after()
                return reply
            self._look_after()
            if until is not None and time.monotonic() >= until and not self._changes.recovering:
                newest, alive = self._feeding.newest, self._cluster.alive
                raise standstill(newest, self._done, alive, self._timeout_s)

    def _next_reply(self, until: float | None) -> Reply | None:
        """The next reply; None when something else is due before."""
        due = [at for at in (until, self._changes.deadline) if at is not None]
        now = time.monotonic()
        if until is not None and self._changes.recovering:
            due = [at for at in due if at > now] or [now + ASK_S]
        try:
            return self._replies.get(timeout=max(min([*due, now + SLICE_S]) - now, 0.0))
        except Empty:
            return None

    def _look_after(self) -> None:
        """Do what is due beside replies: devices that came, losses that were waited out, the balancer's turn."""
        self._members.tick()
        self._changes.tick()
        now = time.monotonic()
        if now >= self._ask_at and self._feeding.newest is not None:
            self.ask()
        self._balancer.turn(now)

    def _take_in(self, reply: Reply) -> None:
        if isinstance(reply, list):
            for logits in reply:
                history = self._feeding.histories.get(logits.sequence)
                if history is not None and history.answered(logits.position, len(logits.rows)):
                    self._changes.tokens += 1
                    self._ready.append(logits)
        elif isinstance(reply, RunError):
            raise reply
        elif not isinstance(reply, Said):
            self._members.happened(reply)
        elif self._members.takes_part(reply):
            self._heard(reply.device, reply.message)
        else:
            self._members.heard(reply)

    def _heard(self, device: str, message: AnyMessage) -> None:
        match message:
            case StepsDone():
                self._steps_done(device, message)
            case Measured():
                self.figures[device] = message.figures
                self._answered[device] = self._answered.get(device, 0) + 1
                self._cluster.monitor.measured(device, message)
            case Opened():
                self.figures[device] = message.figures
                self._openings.opened(device, message.sequence)
            case Rejected():
                if self._openings.rejected(device, message):
                    self._tell(Close(message.sequence), Closing(message.sequence))
            case _:
                if not self._members.said(device, message):
                    self._changes.heard(device, message)

    def _steps_done(self, device: str, message: StepsDone) -> None:
        self.figures[device] = message.figures
        self._done[device] = message.steps
        if self._feeding.progress.are_tokens(message.steps):
            self._cluster.monitor.steps(device, message.steps)
        if self._feeding.done(device, message.steps):
            self._go(self._feeding.release())
        self._changes.steps_done()

    def _parted(self, device: str, came: bool) -> None:
        """A device takes part from now on, or does not any more."""
        self._balancer.happened(EventKind.JOINED if came else EventKind.LOST, device)
        if came:
            self._answered[device] = self._asked
            self.sequences = min(self.sequences, self._members.capacity)
            return
        self._answered.pop(device, None)
        self._done.pop(device, None)
        self._openings.lost(device)
        self._replies.put([])  # who waits for all others to answer looks again

    def _unlinked(self, device: str, reason: str) -> None:
        self._replies.put(Unlinked(device, reason))

    def _go(self, feeds: Sequence[Feed]) -> None:
        if feeds:
            self._changes.fed_at = time.perf_counter()
            self._engine.inbox.put(Fed(tuple(feeds)))

    def _tell(self, message: Message, event: Event) -> None:
        """Say it to every worker, and to the engine here."""
        self._engine.inbox.put(event)
        self._members.tell_all(message)

    def _run_engine(self) -> None:
        try:
            self._engine.run()
        except RunError as error:
            self._replies.put(error)

    def close(self) -> None:
        """Say goodbye and end everything; safe to call in any state, more than once."""
        self._balancer.close()
        self._links.retire()
        self._cluster.controls.close()
        self._links.close()
        self._engine.inbox.put(Stop())
        if self._compute.is_alive():
            self._compute.join(COMPUTE_END_S)
