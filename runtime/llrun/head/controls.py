"""The head's control connections: set-up of a session, what the workers say, and which of failures is
the cause."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

from llrun.errors import INTERNAL, LOST, RunError, lost
from llrun.programs.installed import Installed
from llrun.wire.handshake import dial, read_message, send_message
from llrun.wire.links import Links
from llrun.wire.protocol import AnyMessage, Failed, Goodbye, Heartbeat, Hello, Message, ProtocolError
from llrun.wire.pulse import Pulse
from llrun.wire.transport import Connection, ConnectionLost, Transport

REACH_S = 10.0
DATA_S = 30.0
RETRY_S = 0.1
GOODBYE_S = 0.5
GRACE_S = 0.25
BUSY = "R306"


@dataclass(frozen=True)
class Logits:
    """Logits (rows, vocabulary) of a sequence's step that began at `position`."""

    sequence: int
    position: int
    rows: NDArray[np.float32]


Reply = tuple[str, AnyMessage] | list[Logits] | RunError  # the logits of one pass come together; [] wakes


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
    ) -> None:
        self.addresses = dict(addresses)
        self.session = secrets.token_hex(16)
        self._hello = Hello(bundle, head, "control")
        self._transport = transport
        self._replies = replies
        self._connections: dict[str, Connection] = {}
        self._hearing: list[threading.Thread] = []
        self._pulse: Pulse | None = None

    def __len__(self) -> int:
        return len(self._connections)

    def connect(self) -> None:
        """Reach every worker. Raises RunError R302 that names who is not there, or its refusal."""
        until = time.monotonic() + REACH_S
        for name in self.addresses:
            self._connections[name] = self._reach(name, self._hello, until)
            thread = threading.Thread(target=self._hear, args=(name,), name=f"hear {name}", daemon=True)
            self._hearing.append(thread)
            thread.start()
        self._pulse = Pulse(self._connections, self._replies.put)
        self._pulse.start()

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
        if self._pulse:
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
        """Dial, and dial again while nobody listens yet or the worker still ends another head's session."""
        address = self.addresses[device]
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
        control = self._connections[device]
        try:
            while True:
                message = read_message(control)
                if not isinstance(message, Heartbeat):
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
