"""A worker: listens, admits one head after another, and drops a head's sequences when the head goes."""

from __future__ import annotations

import hmac
import threading
from collections.abc import Mapping
from queue import SimpleQueue
from types import MappingProxyType

from llrun.device.load import Device
from llrun.errors import INTERNAL, RunError
from llrun.wire.handshake import send_message
from llrun.wire.protocol import Hello, ProtocolError, Welcome
from llrun.wire.transport import Connection, Listener, Transport
from llrun.worker.door import Door, Note
from llrun.worker.session import WorkerSession

NO_PEERS: Mapping[str, str] = MappingProxyType({})


class Worker:
    """Serves heads, one at a time. `peers`: where other devices are, when not where the slice says; a worker
    connects to hosts of its slice and of `peers`, and to the head's (neighbours.py)."""

    def __init__(
        self,
        device: Device,
        transport: Transport,
        listener: Listener,
        note: Note,
        peers: Mapping[str, str] = NO_PEERS,
    ) -> None:
        self._device = device
        self._transport = transport
        self._note = note
        self._door = Door(listener, self._admit, note)
        described = {name: info.address for name, info in device.record.devices.items()} | dict(peers)
        self._described = frozenset(described.values())
        self._lock = threading.Lock()
        self._session: WorkerSession | None = None
        self._sessions: SimpleQueue[WorkerSession] = SimpleQueue()

    def serve(self) -> None:
        """Serve for ever, on the calling thread, which is the one that computes."""
        self._door.open()
        while True:
            session = self._sessions.get()
            error = session.run()
            with self._lock:
                self._session = None
            if error:
                self._note(f"{error}; listening again")

    def _admit(self, hello: Hello, connection: Connection) -> None:
        """Begin a session with a head, or give the session its data connection. Raises RunError for anyone else, who
        is not told which bundle this is."""
        record = self._device.record
        if not hmac.compare_digest(hello.bundle.encode(), record.bundle.encode()):
            raise RunError("R304", f"it does not run bundle {hello.bundle[:12]}: copy its slice again")
        with self._lock:
            session = self._session
            if hello.role == "control" and hello.sender == record.head and session is None:
                send_message(connection, Welcome(self._device.name))
                connection.deadline(None)
                self._session = WorkerSession(
                    self._device, self._transport, connection, self._described, self._note
                )
                self._sessions.put(self._session)
                return
        if hello.role == "data" and session is not None:
            session.admit(hello, connection)
        elif hello.role == "control" and hello.sender == record.head:
            raise RunError("R306", "it is serving another head", INTERNAL)
        else:
            raise ProtocolError(f"no {hello.role} connection from {hello.sender} is due")
