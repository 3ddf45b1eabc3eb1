"""A worker: listens, serves one head after another, and drops a head's sequences when the head goes."""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue

from llrun.device.load import Device
from llrun.engine.engine import Engine
from llrun.engine.events import Asking, Closing, Inbox, Opening, Stop
from llrun.errors import INTERNAL, LOST, RunError, lost
from llrun.memory import Array
from llrun.wire.links import HANDSHAKE_S, Links, Pulse, dial, read_message, send_message
from llrun.wire.protocol import (
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
    Refused,
    StepsDone,
    Welcome,
)
from llrun.wire.transport import Connection, ConnectionLost, Listener, Transport

MAX_HANDSHAKES = 16
CONNECT_S = 10.0
DRAIN_S = 0.5
GRACE_S = 0.2
ACCEPT_PAUSE_S = 0.2
REASON_LIMIT = 4096
Note = Callable[[str], None]


class HeadLink:
    """The engine's outside on a worker: tensors to neighbours, replies to the head."""

    def __init__(self, control: Connection, links: Links, head: str) -> None:
        self._control = control
        self._links = links
        self._head = head

    def send(self, destination: str, header: bytes, payload: memoryview) -> None:
        self._links.send(destination, header, payload)

    def opened(self, sequence: int, figures: Figures) -> None:
        self.reply(Opened(sequence, figures))

    def steps_done(self, steps: Sequence[tuple[int, int]], figures: Figures) -> None:
        self.reply(StepsDone(tuple(steps), figures))

    def measured(self, figures: Figures) -> None:
        self.reply(Measured(figures))

    def logits(self, steps: Sequence[tuple[int, int]], rows: Array) -> None:
        raise ProtocolError("logits were made on a device that is not the head")

    def reply(self, message: Message) -> None:
        try:
            send_message(self._control, message)
        except ConnectionLost as error:
            raise lost(self._head, str(error)) from error


class WorkerSession:
    """One head's session. `run` executes steps on the caller's thread; a thread of its own hears the head."""

    def __init__(self, device: Device, transport: Transport, control: Connection) -> None:
        self._device = device
        self._transport = transport
        self._control = control
        self._head = device.record.head
        self._configuration: Configure | None = None
        self._goodbye = threading.Event()
        inbox = Inbox()
        self._links = Links(device.program, device.limits, inbox.deliver, self._fail)
        self._outside = HeadLink(control, self._links, self._head)
        self._engine = Engine(device.program, device.blocks, device.library, self._outside, inbox)
        self._pulse = Pulse({self._head: control}, self._fail)

    def run(self) -> RunError | None:
        """Serve until the head says goodbye (None) or something fails (why). Everything is closed then."""
        threading.Thread(target=self._listen, name="control", daemon=True).start()
        self._pulse.start()
        try:
            self._engine.run()
        except RunError as error:
            # A neighbour that has heard the head's goodbye first is not lost.
            if error.code == LOST and self._goodbye.wait(GRACE_S):
                return None
            self._tell(error)
            return error
        finally:
            self._pulse.stop()
            self._links.close()
            self._control.close(drain_s=DRAIN_S)
        return None

    def admit(self, hello: Hello, connection: Connection) -> None:
        """Take a data connection of this session. Raises ProtocolError for any other."""
        name = self._configuration.session if self._configuration else None
        if name is None or not hmac.compare_digest(name.encode(), hello.session.encode()):
            raise ProtocolError("this is not a connection of the session that is served")
        if hello.sender not in self._device.program.neighbours:
            raise ProtocolError(f"no data connection from device {hello.sender} is due")
        send_message(connection, Welcome(self._device.name))
        connection.deadline(None)
        self._links.attach(hello.sender, connection)

    def _fail(self, error: RunError) -> None:
        self._engine.inbox.put(Stop(error))

    def _tell(self, error: RunError) -> None:
        with suppress(ConnectionLost):  # the head may be what was lost
            send_message(self._control, Failed(error.code, error.message[:REASON_LIMIT], error.device or ""))

    def _listen(self) -> None:
        try:
            while self._heard(read_message(self._control)):
                pass
            self._goodbye.set()
            self._engine.inbox.put(Stop())
        except ConnectionLost as error:
            self._fail(lost(self._head, str(error)))
        except RunError as error:
            self._fail(error)

    def _heard(self, message: AnyMessage) -> bool:
        """Handle a message of the head; False at its last."""
        inbox = self._engine.inbox
        if isinstance(message, Open):
            inbox.put(Opening(message.sequence))
        elif isinstance(message, Close):
            inbox.put(Closing(message.sequence))
        elif isinstance(message, AskFigures):
            inbox.put(Asking())
        elif isinstance(message, Configure):
            self._configure(message)
        elif isinstance(message, Connect):
            threading.Thread(target=self._connect, name="connect", daemon=True).start()
        elif not isinstance(message, Heartbeat | Goodbye):
            raise ProtocolError(f"unexpected {type(message).__name__} from the head")
        return not isinstance(message, Goodbye)

    def _configure(self, message: Configure) -> None:
        if message.epoch != self._device.program.epoch:
            raise ProtocolError(
                f"epoch {message.epoch} asked for, this slice holds {self._device.program.epoch}"
            )
        missing = self._device.program.neighbours - message.addresses.keys()
        if missing:
            raise ProtocolError(f"no address given for {', '.join(sorted(missing))}")
        self._configuration = message
        self._outside.reply(Configured(self._device.program.every_chunk))

    def _connect(self) -> None:
        """Dial the neighbours that come later in the alphabet; the earlier ones, and the head, dial this
        device."""
        try:
            if self._configuration is None:
                raise ProtocolError("connect came before configure")
            addresses, session = self._configuration.addresses, self._configuration.session
            for peer in sorted(self._device.program.neighbours - {self._head}):
                if peer > self._device.name:
                    hello = Hello(self._device.record.bundle, self._device.name, "data", session)
                    self._links.attach(peer, self._dial(peer, addresses[peer], hello))
            self._links.wait_complete(CONNECT_S)
            self._outside.reply(Ready())
        except RunError as error:
            self._fail(error)

    def _dial(self, peer: str, address: str, hello: Hello) -> Connection:
        try:
            return dial(self._transport, peer, address, hello, CONNECT_S)
        except ConnectionLost as error:
            raise RunError("R302", f"cannot reach device {peer} at {address}: {error}", INTERNAL) from error


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
