"""A worker: loads, admits one head after another, and drops a head's sequences when the head goes."""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from types import MappingProxyType

from llrun.device.load import Device
from llrun.errors import INTERNAL, RunError
from llrun.schema import Slice
from llrun.wire.handshake import send_message
from llrun.wire.messages import Hello, Welcome
from llrun.wire.protocol import BUSY, LOADING, ProtocolError
from llrun.wire.transport import Connection, Listener, Transport
from llrun.worker.door import Door, Note
from llrun.worker.probing import Probing
from llrun.worker.session import WorkerSession

TELL_S = 5.0  # a head that waits asks again within a part of it
SENT_S = 0.2
NO_PEERS: Mapping[str, str] = MappingProxyType({})


class Worker:
    """Serves heads, one at a time. `peers`: where other devices are, when not where the slice says; a worker
    connects to hosts of its slice and of `peers`, and to the head's (neighbours.py).

    First `load`, then `serve`. A head that comes while it loads is told to wait; when loading fails, one that waits
    is told why.
    """

    def __init__(
        self,
        record: Slice,
        transport: Transport,
        listener: Listener,
        note: Note,
        peers: Mapping[str, str] = NO_PEERS,
    ) -> None:
        self._record = record
        self._transport = transport
        self._note = note
        self._door = Door(listener, self._admit, note)
        described = {name: info.address for name, info in record.devices.items()} | dict(peers)
        self._described = frozenset(described.values())
        self._probing = Probing(record.device, lambda: self.state)
        self._lock = threading.Lock()
        self._device: Device | None = None
        self._failure: RunError | None = None
        self._awaited = threading.Event()
        self._told = threading.Event()
        self._restored = True  # whether the device has its own program's blocks in memory
        self._session: WorkerSession | None = None
        self._sessions: SimpleQueue[WorkerSession] = SimpleQueue()

    @property
    def sequences(self) -> int | None:
        """Of the head that is served; None while none is. From any thread."""
        session = self._session
        return session.sequences if session else None

    @property
    def state(self) -> str:
        """What it does, in a word. From any thread."""
        if self._session:
            return "serving"
        return "waiting" if self._device and self._restored else "loading"

    def load(self, load: Callable[[], Device]) -> None:
        """Load the device, and answer heads meanwhile. Raises RunError of `load`, after a head that waits has heard
        it."""
        self._door.open()
        try:
            self._device = load()
        except RunError as error:
            self._failure = error
            if self._awaited.is_set() and self._told.wait(TELL_S):
                time.sleep(SENT_S)
            raise

    def serve(self) -> None:
        """Serve for ever, on the calling thread, which is the one that computes."""
        while True:
            session = self._sessions.get()
            error = session.run()
            with self._lock:
                self._session, self._restored = None, False
            if error:
                self._note(f"{error}; listening again")
            session.restore()  # what it moved here goes, what it moved away comes back, before the next head is served
            self._restored = True

    def _admit(self, hello: Hello, connection: Connection) -> None:
        """Begin a session with a head, or give the session its data connection. Raises RunError for anyone else, who
        is not told which bundle this is."""
        record = self._record
        if not hmac.compare_digest(hello.bundle.encode(), record.bundle.encode()):
            raise RunError("R304", f"it does not run bundle {hello.bundle[:12]}: copy its slice again")
        if hello.role == "probe" and hello.sender in record.devices:
            self._probing.answer(connection)
            return
        with self._lock:
            session = self._session
            if hello.role == "control" and hello.sender == record.head and session is None:
                device = self._loaded()
                send_message(connection, Welcome(record.device))
                connection.deadline(None)
                self._session = WorkerSession(
                    device, self._transport, connection, self._described, self._note
                )
                self._sessions.put(self._session)
                return
        if hello.role == "data" and session is not None:
            session.admit(hello, connection)
        elif hello.role == "control" and hello.sender == record.head:
            raise RunError(BUSY, "it is serving another head", INTERNAL)
        else:
            raise ProtocolError(f"no {hello.role} connection from {hello.sender} is due")

    def _loaded(self) -> Device:
        """The device. Raises RunError while it loads, or why it could not be loaded."""
        if self._failure:
            self._told.set()
            raise self._failure
        if self._device is None or not self._restored:
            self._awaited.set()
            raise RunError(LOADING, "it is still loading its part of the model", INTERNAL)
        return self._device
