"""The head of a session: connects the devices, feeds sequences, and collects logits and figures."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

from llrun.device import Device
from llrun.engine import Asking, Closing, Engine, Event, Fed, Opening, Stop
from llrun.errors import INTERNAL, LOST, RunError, lost
from llrun.links import Links, Pulse, dial, read_message, send_message
from llrun.memory import Array, empty
from llrun.protocol import (
    ALL_ROWS,
    LAST_CHUNK,
    AnyMessage,
    AskFigures,
    Close,
    Configure,
    Configured,
    Connect,
    Failed,
    Figures,
    Goodbye,
    Heartbeat,
    Hello,
    Measured,
    Message,
    Open,
    Opened,
    ProtocolError,
    Ready,
    StepDone,
)
from llrun.transport import Connection, ConnectionLost, Transport

REACH_S = 10.0
SET_UP_S = 20.0
RETRY_S = 0.1
GOODBYE_S = 0.5
COMPUTE_END_S = 5.0
GRACE_S = 0.25
BUSY = "R306"
Ids = Sequence[int]


@dataclass(frozen=True)
class Logits:
    """Logits (rows, vocabulary) of a sequence's step that began at `position`."""

    sequence: int
    position: int
    rows: NDArray[np.float32]


Reply = tuple[str, AnyMessage] | Logits | RunError


@dataclass(frozen=True)
class Failure:
    """An error, and the worker that reported it (None: seen from here)."""

    device: str | None
    error: RunError


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

    def step_done(self, sequence: int, position: int, figures: Figures) -> None:
        self._replies.put((self._device, StepDone(sequence, position, figures)))

    def measured(self, figures: Figures) -> None:
        self._replies.put((self._device, Measured(figures)))

    def logits(self, sequence: int, position: int, rows: Array) -> None:
        matrix = rows.reshape(-1, rows.shape[-1]).astype(np.float32, copy=False)
        self._replies.put(Logits(sequence, position, matrix))


class Session:
    """All devices of a bundle, connected and ready. Use as a context manager, from one thread.

    A sequence is opened, fed with token ids, and gives the logits of each feed's last token (`all_rows`:
    of every token) in the order in which they come. `timeout_s` bounds every wait for progress. Any
    RunError ends the session.
    """

    def __init__(
        self, device: Device, transport: Transport, addresses: Mapping[str, str], timeout_s: float
    ) -> None:
        self._device = device
        self._transport = transport
        self._timeout_s = timeout_s
        self._replies: SimpleQueue[Reply] = SimpleQueue()
        inbox: SimpleQueue[Event] = SimpleQueue()
        self._links = Links(device.program, device.limits, inbox, self._replies.put)
        outbound = Outbound(device.name, self._links, self._replies)
        self._engine = Engine(device.program, device.blocks, device.library, outbound, inbox)
        self._addresses = {name: addresses[name] for name in workers_of(device)}
        self._controls: dict[str, Connection] = {}
        self._hearing: list[threading.Thread] = []
        self._pulse: Pulse | None = None
        self._compute = threading.Thread(target=self._run_engine, name="compute", daemon=True)
        self._next = 0
        self._waiting: deque[Fed] = deque()
        self._chunks: dict[tuple[int, int], int] = {}
        self._partial: set[str] = set()  # devices that take part in a prompt's last chunk alone
        self._ready: deque[Logits] = deque()
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

    # --- sequences ---

    def open(self) -> int:
        """Make room for a sequence on every device; its number."""
        number = self._next
        self._next += 1
        self._tell(Open(number), Opening(number))
        self._gather(Opened)
        return number

    def close_sequence(self, number: int) -> None:
        self._tell(Close(number), Closing(number))

    def feed(self, number: int, ids: Ids, position: int, all_rows: bool = False) -> None:
        """Queue `ids` at `position`, in chunks. Chunks beyond what may be under way wait here, not on
        the devices."""
        chunk = self._device.record.model.chunk
        for start in range(0, len(ids), chunk):
            part = ids[start : start + chunk]
            array = empty((1, len(part)), "int64")
            array[0] = part
            flags = (LAST_CHUNK if start + chunk >= len(ids) else 0) | (ALL_ROWS if all_rows else 0)
            self._waiting.append(Fed(number, position + start, flags, array))
        self._release()

    def next_logits(self) -> Logits:
        """The next logits of any sequence. Raises RunError when a device is lost or nothing moves for
        too long."""
        while not self._ready:
            self._take()
        return self._ready.popleft()

    def logits(self, ids: Ids) -> NDArray[np.float32]:
        """Logits (n, vocabulary) at every one of n token ids, as a new sequence."""
        number = self.open()
        self.feed(number, ids, 0, all_rows=True)
        found: dict[int, NDArray[np.float32]] = {}
        while sum(len(rows) for rows in found.values()) < len(ids):
            part = self.next_logits()
            found[part.position] = part.rows
        self.close_sequence(number)
        return np.concatenate([found[position] for position in sorted(found)])

    def measure(self) -> dict[str, Figures]:
        """Every device's figures now."""
        self._tell(AskFigures(), Asking())
        self._gather(Measured)
        return dict(self.figures)

    # --- what comes back ---

    def _take(self) -> AnyMessage | None:
        """Take one reply in: logits and figures are kept, chunks that are done make room for others."""
        try:
            reply = self._replies.get(timeout=self._timeout_s)
        except Empty:
            raise RunError(
                "R305", f"nothing came from any device for {self._timeout_s:g} s; see --timeout", INTERNAL
            ) from None
        failure = _failure(reply)
        if failure:
            raise self._cause(failure)
        if isinstance(reply, Logits):
            self._ready.append(reply)
        if not isinstance(reply, tuple):
            return None
        device, message = reply
        if isinstance(message, Opened | StepDone | Measured):
            self.figures[device] = message.figures
        if isinstance(message, Configured) and not message.every_chunk:
            self._partial.add(device)
        if isinstance(message, StepDone):
            self._chunk_done((message.sequence, message.position))
        return message

    def _cause(self, first: Failure) -> RunError:
        """Why the session ended. A device that fails, or misses another, says so and closes its
        connections: the cause is what is not a loss, else the loss of a device that did not say anything
        itself."""
        failures = [first]
        until = time.monotonic() + GRACE_S
        while (left_s := until - time.monotonic()) > 0:
            try:
                other = _failure(self._replies.get(timeout=left_s))
            except Empty:
                break
            if other:
                failures.append(other)
        spoke = {failure.device for failure in failures}
        causes = [f.error for f in failures if f.error.code != LOST]
        causes += [f.error for f in failures if f.error.device not in spoke]
        return (causes or [first.error])[0]

    def _gather(self, kind: type[Message]) -> None:
        """Take replies until every device has sent one of `kind`."""
        due = len(self._controls) + (1 if kind in (Opened, Measured) else 0)
        while due:
            due -= isinstance(self._take(), kind)

    def _chunk_done(self, key: tuple[int, int]) -> None:
        if key in self._chunks:
            self._chunks[key] -= 1
            if not self._chunks[key]:
                del self._chunks[key]
                self._release()

    def _release(self) -> None:
        """Let waiting chunks go while fewer are under way than keep every device busy; single tokens go
        at once."""
        devices = len(self._controls) + 1
        while self._waiting and (self._waiting[0].ids.shape[1] == 1 or len(self._chunks) < 2 * devices):
            fed = self._waiting.popleft()
            if fed.ids.shape[1] > 1:
                absent = 0 if fed.flags & (LAST_CHUNK | ALL_ROWS) else len(self._partial)
                self._chunks[fed.sequence, fed.position] = devices - absent
            self._engine.inbox.put(fed)

    def _tell(self, message: Message, event: Event) -> None:
        self._engine.inbox.put(event)
        for device, control in self._controls.items():
            try:
                send_message(control, message)
            except ConnectionLost as error:
                raise lost(device, str(error)) from error

    # --- setting up and ending ---

    def _connect(self) -> None:
        """Control connections, then configuration, then data connections: each step on all devices at
        once."""
        hello = Hello(self._device.record.bundle, self._device.name, "control")
        until = time.monotonic() + REACH_S
        for name, address in self._addresses.items():
            self._controls[name] = self._reach(name, address, hello, until)
            thread = threading.Thread(target=self._hear, args=(name,), name=f"hear {name}", daemon=True)
            self._hearing.append(thread)
            thread.start()
        self._pulse = Pulse(self._controls, self._replies.put)
        self._pulse.start()
        self._compute.start()
        session = secrets.token_hex(16)
        addresses = {**self._addresses, self._device.name: "0.0.0.0:0"}
        self._ask(Configure(session, self._device.program.epoch, addresses), Configured)
        for name in sorted(self._device.program.neighbours):
            data = Hello(self._device.record.bundle, self._device.name, "data", session)
            self._links.attach(name, self._reach(name, self._addresses[name], data, until + SET_UP_S))
        self._ask(Connect(), Ready)

    def _ask(self, message: Message, answer: type[Message]) -> None:
        """Send `message` to every worker and wait for all their answers."""
        for device, control in self._controls.items():
            try:
                send_message(control, message)
            except ConnectionLost as error:
                raise lost(device, str(error)) from error
        self._gather(answer)

    def _reach(self, device: str, address: str, hello: Hello, until: float) -> Connection:
        """Dial, and dial again while nobody listens yet or the worker still ends another head's session."""
        while True:
            try:
                return dial(self._transport, device, address, hello, max(until - time.monotonic(), RETRY_S))
            except ConnectionLost as error:
                failure = RunError(
                    "R302",
                    f"cannot reach device {device} at {address}: {error}. Is llrun running there?",
                    INTERNAL,
                )
            except RunError as error:
                if error.code != BUSY:
                    raise
                failure = error
            if time.monotonic() + RETRY_S > until:
                raise failure
            time.sleep(RETRY_S)

    def _hear(self, device: str) -> None:
        """Pass on what `device` says until it is gone."""
        control = self._controls[device]
        try:
            while True:
                message = read_message(control)
                if not isinstance(message, Heartbeat):
                    self._replies.put((device, message))
        except ConnectionLost as error:
            self._replies.put(lost(device, str(error)))
        except ProtocolError as error:
            self._replies.put(RunError(error.code, f"device {device}: {error.message}", INTERNAL))

    def _run_engine(self) -> None:
        try:
            self._engine.run()
        except RunError as error:
            self._replies.put(error)

    def close(self) -> None:
        """Say goodbye and end everything; safe to call in any state, more than once."""
        if self._pulse:
            self._pulse.stop()
        self._links.retire()
        for control in self._controls.values():
            with suppress(ConnectionLost):
                send_message(control, Goodbye())
        until = time.monotonic() + GOODBYE_S
        for thread in self._hearing:  # each ends when its worker has heard the goodbye and closes
            thread.join(max(until - time.monotonic(), 0))
        self._links.close()
        for control in self._controls.values():
            control.close()
        self._controls.clear()
        self._engine.inbox.put(Stop())
        if self._compute.is_alive():
            self._compute.join(COMPUTE_END_S)


def _failure(reply: Reply) -> Failure | None:
    """The failure that a reply stands for, if any. That a device was lost is about that one, whoever
    says it."""
    if isinstance(reply, RunError):
        return Failure(None, reply)
    if isinstance(reply, tuple) and isinstance(reply[1], Failed):
        device, said = reply[0], reply[1]
        reason = said.reason if said.code == LOST else f"device {device}: {said.reason}"
        return Failure(device, RunError(said.code, reason, INTERNAL, said.lost or None))
    return None


def workers_of(device: Device) -> list[str]:
    """Every device of the plan but the head, by name."""
    return sorted(device.record.devices.keys() - {device.record.head})
