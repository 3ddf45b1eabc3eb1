"""The head's control connections: made once for all, or again and again until a device listens."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from queue import SimpleQueue

from llrun.errors import INTERNAL, RunError
from llrun.head.replies import Back, Came, Gone, Refused, Reply, Said, Silent
from llrun.wire.handshake import Refusal, dial, read_message, send_message
from llrun.wire.messages import Failed, Goodbye, Heartbeat, Hello, Message
from llrun.wire.protocol import BUSY, LOADING, ProtocolError
from llrun.wire.pulse import HEAD_PATIENCE_S, Pulse
from llrun.wire.transport import Connection, ConnectionLost, Transport

FIRST_ATTEMPT_S, ATTEMPT_S = 0.5, 2.0  # the first one is short: who waits is told at once
RETRY_S = 0.2
AGAIN_S = 1.0  # between two attempts for a device that can be done without
GOODBYE_S = 0.5
Note = Callable[[str], None]


def silent(text: str) -> None:
    """A note that nobody reads."""


class Controls:
    """A control connection to each worker that is there. What they say goes into `replies`, heartbeats apart.

    A device that is not there is dialled on a thread of its own until it is, or until it is not looked for any more.
    """

    def __init__(
        self,
        bundle: str,
        head: str,
        transport: Transport,
        addresses: Mapping[str, str],
        replies: SimpleQueue[Reply],
        note: Note = silent,
    ) -> None:
        """`note` is told who is waited for, and why."""
        self.addresses = dict(addresses)
        self.session = secrets.token_hex(16)
        self._hello = Hello(bundle, head, "control")
        self._transport = transport
        self._replies = replies
        self._note = note
        self._connections: dict[str, Connection] = {}
        self._hearing: list[threading.Thread] = []
        self._looked_for: dict[str, threading.Event] = {}  # set: not any more
        self._why: dict[str, RunError] = {}  # whoever is looked for, what stands in the way
        self._closed = False
        self._pulse = Pulse(
            lambda device, reason: replies.put(Silent(device, reason)),
            lambda device: replies.put(Back(device)),
            HEAD_PATIENCE_S,
        )

    @property
    def connected(self) -> frozenset[str]:
        return frozenset(self._connections)

    def connection(self, device: str) -> Connection | None:
        return self._connections.get(device)

    def look_for(self, device: str, told: bool = False, needed: bool = True) -> None:
        """Dial a device until it answers. `told`: whether it was told already that the device is not there. `needed`:
        whether it is waited for."""
        stop = self._looked_for.get(device)
        if stop is None or stop.is_set():
            stop = self._looked_for[device] = threading.Event()
            threading.Thread(
                target=self._look, args=(device, stop, told, needed), name=f"look for {device}", daemon=True
            ).start()

    def why(self, device: str) -> RunError:
        """What stands in the way of a device that is looked for."""
        address = self.addresses[device]
        nothing = RunError("R302", f"cannot reach device {device} at {address}: no answer in time", INTERNAL)
        return self._why.get(device, nothing)

    def take(self, device: str, connection: Connection) -> None:
        """A connection that came is the device's from now on: it is heard, and has its pulse."""
        self._looked_for.pop(device, None)
        self._connections[device] = connection
        self._pulse.watch(device, connection)
        thread = threading.Thread(
            target=self._hear, args=(device, connection), name=f"hear {device}", daemon=True
        )
        self._hearing = [each for each in self._hearing if each.is_alive()]
        self._hearing.append(thread)
        thread.start()

    def tell(self, device: str, message: Message) -> None:
        """Say it to a device; that it is gone is told by who hears it."""
        connection = self._connections.get(device)
        if connection is not None:
            with suppress(ConnectionLost):
                send_message(connection, message)

    def tell_all(self, message: Message, devices: Iterable[str] | None = None) -> None:
        for device in sorted(self._connections if devices is None else devices):
            self.tell(device, message)

    def drop(self, device: str) -> None:
        """The device takes no part any more; it hears so if it can."""
        connection = self._connections.pop(device, None)
        if connection is not None:
            self._pulse.forget(device)
            connection.close()

    def dial_data(self, device: str, timeout_s: float) -> Connection:
        """A data connection to a device that knows the session's name. Raises ConnectionLost, RunError."""
        hello = Hello(self._hello.bundle, self._hello.sender, "data", self.session)
        return dial(self._transport, device, self.addresses[device], hello, timeout_s)

    def close(self) -> None:
        """Say goodbye, wait a moment for workers to have heard it, and close."""
        self._closed = True
        for stop in self._looked_for.values():
            stop.set()
        self._pulse.stop()
        self.tell_all(Goodbye())
        until = time.monotonic() + GOODBYE_S
        for thread in self._hearing:
            thread.join(max(until - time.monotonic(), 0))
        for device in list(self._connections):
            self._connections.pop(device).close()

    def _look(self, device: str, stop: threading.Event, told: bool, needed: bool) -> None:
        """Dial, and dial again while nobody listens yet, the worker loads, or still serves another head."""
        address, attempt_s, reasons = self.addresses[device], FIRST_ATTEMPT_S, set[str]()
        while not stop.is_set():
            try:
                connection = dial(self._transport, device, address, self._hello, attempt_s)
            except ConnectionLost as error:
                reason = str(error)
                self._why[device] = RunError(
                    "R302", f"cannot reach device {device} at {address}: {reason}", INTERNAL
                )
            except Refusal as error:
                if error.code not in (BUSY, LOADING):
                    self._replies.put(Refused(device, error))
                    return
                self._why[device], reason = error, error.reason
            except RunError as error:  # another device, another program
                self._replies.put(Refused(device, error))
                return
            else:
                if stop.is_set():
                    connection.close()
                else:
                    self._replies.put(Came(device, connection))
                return
            if not told and reason not in reasons:
                begins = "waiting for" if needed else "going on without"
                self._note(f"{begins} device {device} at {address}: {reason}")
            reasons.add(reason)
            attempt_s = ATTEMPT_S
            stop.wait(RETRY_S if needed and not told else AGAIN_S)

    def _hear(self, device: str, connection: Connection) -> None:
        """Pass on what `device` says until it is gone."""
        try:
            while True:
                message = read_message(connection)
                if isinstance(message, Failed):
                    self._replies.put(Gone(device, connection, message.reason, message.code))
                    return
                if not isinstance(message, Heartbeat):
                    self._replies.put(Said(device, message, connection))
        except ConnectionLost as error:
            self._replies.put(Gone(device, connection, str(error), "R301"))
        except ProtocolError as error:
            self._replies.put(Gone(device, connection, error.message, error.code))
