"""A worker: listens, admits one head after another, and drops a head's sequences when the head goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue

from llrun.device.load import Device
from llrun.errors import INTERNAL, RunError
from llrun.wire.handshake import HANDSHAKE_S, read_message, send_message
from llrun.wire.protocol import Hello, ProtocolError, Refused, Welcome
from llrun.wire.transport import Connection, ConnectionLost, Listener, Transport
from llrun.worker.session import DRAIN_S, REASON_LIMIT, WorkerSession

MAX_HANDSHAKES = 16
ACCEPT_PAUSE_S = 0.2
Note = Callable[[str], None]


class Worker:
    """Accepts connections and serves heads, one at a time."""

    def __init__(self, device: Device, transport: Transport, listener: Listener, note: Note) -> None:
        self._device = device
        self._transport = transport
        self._listener = listener
        self._note = note
        self._handshakes = threading.BoundedSemaphore(MAX_HANDSHAKES)
        self._lock = threading.Lock()
        self._session: WorkerSession | None = None
        self._sessions: SimpleQueue[WorkerSession] = SimpleQueue()

    def serve(self) -> None:
        """Serve for ever, on the calling thread, which is the one that computes."""
        threading.Thread(target=self._accept, name="accept", daemon=True).start()
        while True:
            session = self._sessions.get()
            error = session.run()
            with self._lock:
                self._session = None
            if error:
                self._note(f"{error}; listening again")

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()
            except ConnectionLost as error:
                self._note(f"cannot accept connections: {error}")
                time.sleep(ACCEPT_PAUSE_S)
                continue
            if not self._handshakes.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(
                target=self._handshake, args=(connection,), name="handshake", daemon=True
            ).start()

    def _handshake(self, connection: Connection) -> None:
        try:
            connection.deadline(HANDSHAKE_S)
            hello = read_message(connection)
            if not isinstance(hello, Hello):
                raise ProtocolError(f"{type(hello).__name__} came where hello was due")
            self._admit(hello, connection)
        except RunError as error:
            with suppress(ConnectionLost):
                send_message(connection, Refused(error.code, error.message[:REASON_LIMIT]))
            connection.close(drain_s=DRAIN_S)
        except ConnectionLost:
            connection.close()
        finally:
            self._handshakes.release()

    def _admit(self, hello: Hello, connection: Connection) -> None:
        record = self._device.record
        if hello.bundle != record.bundle:
            raise RunError(
                "R304", f"it runs bundle {record.bundle[:12]}, not {hello.bundle[:12]}: copy its slice again"
            )
        with self._lock:
            session = self._session
            if hello.role == "control" and hello.sender == record.head and session is None:
                send_message(connection, Welcome(self._device.name))
                connection.deadline(None)
                self._session = WorkerSession(self._device, self._transport, connection)
                self._sessions.put(self._session)
                return
        if hello.role == "data" and session is not None:
            session.admit(hello, connection)
        elif hello.role == "control" and hello.sender == record.head:
            raise RunError("R306", "it is serving another head", INTERNAL)
        else:
            raise ProtocolError(f"no {hello.role} connection from {hello.sender} is due")
