"""The head's control connections: set-up, what the workers say, which of failures is the cause."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llrun.errors import INTERNAL, LOST, RunError, lost
from llrun.programs.installed import Installed
from llrun.wire.handshake import Refusal, dial, read_message, send_message
from llrun.wire.links import Links
from llrun.wire.messages import AnyMessage, Failed, Goodbye, Heartbeat, Hello, Message
from llrun.wire.protocol import BUSY, LOADING, ProtocolError
from llrun.wire.pulse import Pulse
from llrun.wire.transport import Connection, ConnectionLost, Transport

REACH_S = 120.0
DATA_S = 30.0
FIRST_ATTEMPT_S, ATTEMPT_S = 0.5, 2.0  # the first one is short: who waits is told at once
RETRY_S = 0.2
GOODBYE_S = 0.5
GRACE_S = 0.25


class Logits(NamedTuple):
    """Logits (rows, vocabulary) of a sequence's step that began at `position`."""

    sequence: int
    position: int
    rows: NDArray[np.float32]


Note = Callable[[str], None]
Reply = tuple[str, AnyMessage] | list[Logits] | RunError  # the logits of one pass come together; [] wakes


def silent(text: str) -> None:
    """A note that nobody reads."""


@dataclass(frozen=True)
class Failure:
    """An error, and the worker that reported it (None: seen from here)."""

    device: str | None
    error: RunError


class Controls:
    """A control connection to every worker. What they say goes into `replies`, heartbeats apart."""

    def __init__(
        self,
        bundle: str,
        head: str,
        transport: Transport,
        addresses: Mapping[str, str],
        replies: SimpleQueue[Reply],
        timeout_s: float = REACH_S,
        note: Note = silent,
    ) -> None:
        """`timeout_s`: how long each worker is waited for; `note` is told who is waited for, and why."""
        self.addresses = dict(addresses)
        self.session = secrets.token_hex(16)
        self._hello = Hello(bundle, head, "control")
        self._transport = transport
        self._replies = replies
        self._timeout_s = timeout_s
        self._note = note
        self._connections: dict[str, Connection] = {}
        self._hearing: list[threading.Thread] = []
        self._pulse = Pulse(replies.put)

    def __len__(self) -> int:
        return len(self._connections)

    def connect(self) -> None:
        """Reach every worker, however late it comes. One after the other, in the order of their names, so that
        of two heads one gets all workers. Each connection has its pulse as soon as it is made.

        Raises RunError: R302 that names who did not come in time and why, its refusal, or the loss of one that
        was reached before.
        """
        for name in sorted(self.addresses):
            control = self._reach(name, self._hello, time.monotonic() + self._timeout_s)
            self._connections[name] = control
            self._pulse.watch(name, control)
            thread = threading.Thread(target=self._hear, args=(name,), name=f"hear {name}", daemon=True)
            self._hearing.append(thread)
            thread.start()

    def connect_data(self, installed: Installed, links: Links) -> None:
        """Make the data connections with the head's neighbours, which know the session's name by now."""
        until = time.monotonic() + DATA_S
        hello = Hello(self._hello.bundle, self._hello.sender, "data", self.session)
        for name in sorted(installed.neighbours):
            links.attach(name, self._reach(name, hello, until))

    def tell(self, message: Message) -> None:
        """Say it to every worker. Raises RunError that names the one that is gone."""
        for device, control in self._connections.items():
            try:
                send_message(control, message)
            except ConnectionLost as error:
                raise lost(device, str(error)) from error

    def close(self) -> None:
        """Say goodbye, wait a moment for workers to have heard it, and close."""
        self._pulse.stop()
        for control in self._connections.values():
            with suppress(ConnectionLost):
                send_message(control, Goodbye())
        until = time.monotonic() + GOODBYE_S
        for thread in self._hearing:
            thread.join(max(until - time.monotonic(), 0))
        for control in self._connections.values():
            control.close()
        self._connections.clear()

    def _reach(self, device: str, hello: Hello, until: float) -> Connection:
        """Dial, and dial again while nobody listens yet, the worker loads, or still serves another head."""
        address, attempt_s, told = self.addresses[device], FIRST_ATTEMPT_S, set[str]()
        while True:
            left_s = max(until - time.monotonic(), RETRY_S)
            try:
                return dial(self._transport, device, address, hello, min(attempt_s, left_s))
            except ConnectionLost as error:
                failure: RunError = RunError(
                    "R302", f"cannot reach device {device} at {address}: {error}", INTERNAL
                )
                reason = str(error)
            except Refusal as error:
                if error.code not in (BUSY, LOADING):
                    raise
                if error.code == LOADING:  # it lives: what is waited for comes nearer
                    until = max(until, time.monotonic() + self._timeout_s)
                failure, reason = error, error.reason
            if time.monotonic() + RETRY_S > until:
                raise failure
            if reason not in told:
                self._note(f"waiting for device {device} at {address}: {reason}")
            told.add(reason)
            attempt_s = ATTEMPT_S
            self._pause()

    def _pause(self) -> None:
        """Wait a little before the next attempt. Raises RunError as soon as a device that was reached before
        fails."""
        with suppress(Empty):
            reply = self._replies.get(timeout=RETRY_S)
            failure = failure_of(reply)
            if failure:
                raise cause_of(failure, self._replies)
            raise ProtocolError(f"{type(reply).__name__} came before all devices were reached")

    def _hear(self, device: str) -> None:
        """Pass on what `device` says until it is gone."""
        control = self._connections[device]
        try:
            while True:
                message = read_message(control)
                if isinstance(message, Failed) and message.lost == self._hello.sender:
                    # It has lost this device, which is here: what is lost is the way to that one.
                    self._replies.put(lost(device, f"there it says: {message.reason}"))
                elif not isinstance(message, Heartbeat):
                    self._replies.put((device, message))
        except ConnectionLost as error:
            self._replies.put(lost(device, str(error)))
        except ProtocolError as error:
            self._replies.put(RunError(error.code, f"device {device}: {error.message}", INTERNAL))


def failure_of(reply: Reply) -> Failure | None:
    """The failure that a reply stands for, if any. That a device was lost is about that one, whoever
    says it."""
    if isinstance(reply, RunError):
        return Failure(None, reply)
    if isinstance(reply, tuple) and isinstance(reply[1], Failed):
        device, said = reply[0], reply[1]
        reason = said.reason if said.code == LOST else f"device {device}: {said.reason}"
        return Failure(device, RunError(said.code, reason, INTERNAL, said.lost or None))
    return None


def cause_of(first: Failure, replies: SimpleQueue[Reply]) -> RunError:
    """Why a session ended. A device that fails, or misses another, says so and closes its connections,
    and which is heard first is chance: the cause is what is not a loss, else the loss of one that said
    nothing itself."""
    failures = [first, *_failures_within(replies, GRACE_S)]
    spoke = {failure.device for failure in failures}
    causes = [f.error for f in failures if f.error.code != LOST]
    causes += [f.error for f in failures if f.error.device not in spoke]
    return (causes or [first.error])[0]


def _failures_within(replies: SimpleQueue[Reply], seconds: float) -> Iterator[Failure]:
    until = time.monotonic() + seconds
    while (left_s := until - time.monotonic()) > 0:
        with suppress(Empty):
            failure = failure_of(replies.get(timeout=left_s))
            if failure:
                yield failure
