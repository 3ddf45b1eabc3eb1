"""One head's session on a worker: what the head says, and what the engine answers."""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress

from llrun.device.load import Device
from llrun.engine.engine import Engine
from llrun.engine.events import Asking, Closing, Inbox, Opening, Stop
from llrun.errors import INTERNAL, LOST, RunError, lost
from llrun.memory import Array
from llrun.programs.installed import Installed
from llrun.wire.handshake import dial, read_message, send_message
from llrun.wire.links import Links
from llrun.wire.messages import (
    AnyMessage,
    AskFigures,
    Close,
    Configure,
    Configured,
    Connect,
    Failed,
    Figures,
    Goodbye,
    Halted,
    Heartbeat,
    Held,
    Hello,
    Measured,
    Message,
    Open,
    Opened,
    Ready,
    Rejected,
    StepDone,
    StepsDone,
    Welcome,
)
from llrun.wire.protocol import ProtocolError
from llrun.wire.pulse import Pulse
from llrun.wire.transport import Connection, ConnectionLost, Transport
from llrun.worker.door import DRAIN_S, REASON_LIMIT, Note
from llrun.worker.neighbours import check_dial

CONNECT_S = 10.0
RETRY_S = 0.2
GRACE_S = 0.2


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

    def halted(self, epoch: int, held: tuple[Held, ...]) -> None:
        self.reply(Halted(epoch, held))

    def switched(self, installed: Installed) -> None:
        self._links.install(installed)

    def rejected(self, sequence: int, reason: str) -> None:
        self.reply(Rejected(sequence, "R402", reason))

    def steps_done(self, steps: Sequence[StepDone], figures: Figures) -> None:
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

    def __init__(
        self,
        device: Device,
        transport: Transport,
        control: Connection,
        described: Collection[str],
        note: Note,
    ) -> None:
        """`described`: the addresses whose hosts may be dialled. `note` is told what the head is not."""
        self._device = device
        self._described = described
        self._note = note
        self._transport = transport
        self._control = control
        self._head = device.record.head
        self._configuration: Configure | None = None
        self._goodbye = threading.Event()
        inbox = Inbox()
        self._links = Links(device.installed, device.limits, inbox.deliver, self._fail)
        self._outside = HeadLink(control, self._links, self._head)
        self._engine = Engine(device, self._outside, inbox)
        self._pulse = Pulse(self._fail)

    def run(self) -> RunError | None:
        """Serve until the head says goodbye (None) or something fails (why). Everything is closed then."""
        threading.Thread(target=self._listen, name="control", daemon=True).start()
        self._pulse.watch(self._head, self._control)
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
        if hello.sender not in self._engine.installed.neighbours:
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
        if message.epoch != self._engine.installed.epoch:
            raise ProtocolError(
                f"epoch {message.epoch} asked for, this slice holds {self._engine.installed.epoch}"
            )
        missing = self._engine.installed.neighbours - message.addresses.keys()
        if missing:
            raise ProtocolError(f"no address given for {', '.join(sorted(missing))}")
        self._configuration = message
        self._outside.reply(Configured(self._engine.installed.every_chunk, self._engine.capacity))

    def _connect(self) -> None:
        """Dial the neighbours later in the alphabet; the earlier ones, and the head, dial this device."""
        try:
            if self._configuration is None:
                raise ProtocolError("connect came before configure")
            addresses, session = self._configuration.addresses, self._configuration.session
            for peer in sorted(self._engine.installed.neighbours - {self._head}):
                if peer > self._device.name:
                    hello = Hello(self._device.record.bundle, self._device.name, "data", session)
                    self._links.attach(peer, self._dial(peer, addresses[peer], hello))
            self._links.wait_complete(CONNECT_S)
            self._outside.reply(Ready())
        except RunError as error:
            self._fail(error)

    def _dial(self, peer: str, address: str, hello: Hello) -> Connection:
        """Connect to `peer`, trying again for CONNECT_S. What stood in the way is told here: to the head it makes
        no difference, in words or in time, what is at an address and what answers there."""
        check_dial(peer, address, self._described, self._control.peer)
        until = time.monotonic() + CONNECT_S
        while True:
            left_s = until - time.monotonic()
            try:
                wait_s = max(left_s, RETRY_S)
                return dial(self._transport, peer, address, hello, wait_s, answer_s=wait_s)
            except (ConnectionLost, RunError) as error:
                reason = str(error)
            if left_s < RETRY_S:
                break
            time.sleep(min(RETRY_S, left_s))
        self._note(f"cannot reach device {peer} at {address}: {reason}")
        raise RunError(
            "R302",
            f"cannot reach device {peer} at {address} from there within {CONNECT_S:g} s: its own output says why",
            INTERNAL,
        )
