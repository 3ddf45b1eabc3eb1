"""One head's session on a worker: what the head says, and what the engine answers."""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress

from llrun.device.headroom import memory_left
from llrun.device.load import Device
from llrun.engine.caches import Caches
from llrun.engine.engine import Engine
from llrun.engine.events import Asking, Closing, Inbox, Opening, Stop
from llrun.engine.part import CONNECT_S, RETRY_S, Part
from llrun.errors import INTERNAL, LOST, RunError, lost
from llrun.memory import Array
from llrun.programs.installed import Installed, install
from llrun.programs.write import idle_program
from llrun.wire.handshake import dial, read_message, send_message
from llrun.wire.links import Links
from llrun.wire.messages import (
    AnyMessage,
    AskFigures,
    Close,
    Configure,
    Configured,
    Connect,
    Copied,
    Failed,
    Figures,
    Goodbye,
    Halted,
    Heartbeat,
    Held,
    Hello,
    LostPeer,
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
from llrun.wire.pulse import WORKER_PATIENCE_S, Pulse
from llrun.wire.pump import Pump
from llrun.wire.transfers import Transfers
from llrun.wire.transport import Connection, ConnectionLost, Transport
from llrun.worker.door import DRAIN_S, REASON_LIMIT, Note
from llrun.worker.neighbours import check_dial

GRACE_S = 0.2


class HeadLink:
    """The engine's outside on a worker: tensors to neighbours, replies to the head. `attach` comes first."""

    def __init__(self, control: Connection, head: str) -> None:
        self._control = control
        self._head = head

    def attach(self, links: Links, transfers: Transfers, part: Part) -> None:
        self._links, self._transfers, self._part = links, transfers, part

    def send(self, destination: str, header: bytes, payload: memoryview) -> None:
        self._links.send(destination, header, payload)

    def opened(self, sequence: int, figures: Figures) -> None:
        self.reply(Opened(sequence, figures))

    def halted(self, epoch: int, held: tuple[Held, ...]) -> None:
        self._part.halted()
        self.reply(Halted(epoch, held))

    def switched(self, installed: Installed) -> None:
        self._part.switched(installed)

    def rejected(self, sequence: int, reason: str) -> None:
        self.reply(Rejected(sequence, "R402", reason))

    def steps_done(self, steps: Sequence[StepDone], figures: Figures) -> None:
        self._transfers.computed()
        self.reply(StepsDone(tuple(steps), figures))

    def measured(self, figures: Figures) -> None:
        room = memory_left()
        self.reply(Measured(figures, self._links.figures(), room.free_bytes if room else 0))

    def logits(self, steps: Sequence[tuple[int, int]], rows: Array) -> None:
        raise ProtocolError("logits were made on a device that is not the head")

    def reply(self, message: Message) -> None:
        try:
            send_message(self._control, message)
        except ConnectionLost as error:
            raise lost(self._head, str(error)) from error

    def tell(self, message: Message) -> None:
        """`reply` from a thread that is not the engine's: that the head is gone is told by who hears it."""
        with suppress(RunError):
            self.reply(message)


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
        self._inbox = Inbox(Pump())
        self._outside = HeadLink(control, self._head)
        self._pulse = Pulse(self._silent, lambda _: None, WORKER_PATIENCE_S)
        self._silence = ""

    def run(self) -> RunError | None:
        """Serve until the head says goodbye (None) or something fails (why). Everything is closed then."""
        self._pulse.watch(self._head, self._control)
        try:
            configuration = self._first_message()
            if configuration is not None:
                self._set_up(configuration)
                self._serve()
        except RunError as error:
            # A neighbour that has heard the head's goodbye first is not lost.
            if error.code == LOST and self._goodbye.wait(GRACE_S):
                return None
            self._tell(error)
            return error
        finally:
            self._pulse.stop()
            self._control.close(drain_s=DRAIN_S)
        return None

    def _first_message(self) -> Configure | None:
        """What the session is to be; None for a head that thinks better of it."""
        try:
            while isinstance(message := read_message(self._control), Heartbeat):
                pass
        except ConnectionLost as error:
            raise lost(self._head, self._silence or str(error)) from error
        if not isinstance(message, Configure | Goodbye):
            raise ProtocolError(f"unexpected {type(message).__name__} from the head before it configured")
        return message if isinstance(message, Configure) else None

    def _set_up(self, message: Configure) -> None:
        """Make the engine, which runs the slice's own program, or nothing yet in a session that goes on."""
        device, own = self._device, self._device.installed
        if message.epoch < own.epoch:
            raise ProtocolError(f"epoch {message.epoch} asked for, this slice begins with {own.epoch}")
        if message.epoch > own.epoch:
            own = install(device.record, idle_program(device.name, message.epoch))
        missing = own.neighbours - message.addresses.keys()
        if missing:
            raise ProtocolError(f"no address given for {', '.join(sorted(missing))}")
        self._engine = Engine(device, self._outside, self._inbox, installed=own)
        caches, context = Caches(self._engine.sequences), device.record.model.shapes.context
        transfers = Transfers(
            caches, context, self._outside.send, lambda number: self._outside.tell(Copied(number))
        )
        to, told = self._inbox, (self._fail, self._lost_peer)
        self._links = Links(own, device.limits, to.deliver, *told, transfers, to.pump)
        self._part = Part(
            device, self._engine, self._links, transfers, self._dials, self._dial_once, self._outside.tell
        )
        self._outside.attach(self._links, transfers, self._part)
        self._configuration = message
        self._outside.reply(Configured(own.every_chunk, self._engine.capacity))

    def _serve(self) -> None:
        threading.Thread(target=self._listen, name="control", daemon=True).start()
        try:
            self._engine.run()
        finally:
            self._links.close()
            self._part.end()
            self._engine.sequences.close_all()

    @property
    def sequences(self) -> int:
        """How many are open."""
        return len(self._engine.sequences.numbers) if self._configuration else 0

    def restore(self) -> None:
        """Have in memory what the slice's own program runs, and nothing else. Raises RunError where that cannot be."""
        self._device.store.restore()

    def admit(self, hello: Hello, connection: Connection) -> None:
        """Take a data connection of this session. Raises ProtocolError for any other."""
        name = self._configuration.session if self._configuration else None
        if name is None or not hmac.compare_digest(name.encode(), hello.session.encode()):
            raise ProtocolError("this is not a connection of the session that is served")
        if hello.sender not in self._device.record.devices or hello.sender == self._device.name:
            raise ProtocolError(f"no data connection from device {hello.sender} is due")
        send_message(connection, Welcome(self._device.name))
        connection.deadline(None)
        self._links.attach(hello.sender, connection)

    def _fail(self, error: RunError) -> None:
        self._inbox.put(Stop(error))

    def _silent(self, device: str, reason: str) -> None:
        """The head is given up: who reads its connection hears so."""
        self._silence = reason
        self._control.close()

    def _lost_peer(self, device: str, reason: str) -> None:
        self._outside.tell(LostPeer(device, reason))

    def _tell(self, error: RunError) -> None:
        with suppress(ConnectionLost):  # the head may be what was lost
            send_message(self._control, Failed(error.code, error.message[:REASON_LIMIT], error.device or ""))

    def _listen(self) -> None:
        try:
            while self._heard(read_message(self._control)):
                pass
            self._goodbye.set()
            self._inbox.put(Stop())
        except ConnectionLost as error:
            self._fail(lost(self._head, self._silence or str(error)))
        except RunError as error:
            self._fail(error)

    def _heard(self, message: AnyMessage) -> bool:
        """Handle a message of the head; False at its last."""
        if isinstance(message, Open):
            self._inbox.put(Opening(message.sequence, message.after, message.tokens))
        elif isinstance(message, Close):
            self._inbox.put(Closing(message.sequence))
        elif isinstance(message, AskFigures):
            self._inbox.put(Asking())
        elif isinstance(message, Connect):
            threading.Thread(target=self._connect, name="connect", daemon=True).start()
        elif not isinstance(message, Heartbeat | Goodbye) and not self._part.tell(message):
            raise ProtocolError(f"unexpected {type(message).__name__} from the head")
        return not isinstance(message, Goodbye)

    # --- neighbours ---

    def _dials(self, peer: str) -> bool:
        """Devices dial those later in the alphabet; the head dials all."""
        return peer != self._head and peer > self._device.name

    def _connect(self) -> None:
        """Make the data connections of the program that runs first."""
        try:
            neighbours = self._engine.installed.neighbours
            for peer in sorted(neighbours):
                if self._dials(peer):
                    self._links.attach(peer, self._dial(peer))
            self._links.wait(neighbours, CONNECT_S)
            self._outside.reply(Ready())
        except RunError as error:
            self._fail(error)

    def _dial_once(self, peer: str, timeout_s: float) -> Connection:
        """Connect to `peer`. Raises ConnectionLost, RunError; what stood in the way is told here alone."""
        address, hello = self._way_to(peer)
        check_dial(peer, address, self._described, self._control.peer)
        try:
            return dial(self._transport, peer, address, hello, timeout_s, answer_s=timeout_s)
        except (ConnectionLost, RunError) as error:
            raise RunError("R302", "its own output says why", INTERNAL) from error

    def _way_to(self, peer: str) -> tuple[str, Hello]:
        if self._configuration is None or peer not in self._configuration.addresses:
            raise ProtocolError(f"no address given for {peer}")
        hello = Hello(self._device.record.bundle, self._device.name, "data", self._configuration.session)
        return self._configuration.addresses[peer], hello

    def _dial(self, peer: str) -> Connection:
        """Connect to `peer`, trying again for CONNECT_S. What stood in the way is told here: to the head it makes
        no difference, in words or in time, what is at an address and what answers there."""
        address, hello = self._way_to(peer)
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
