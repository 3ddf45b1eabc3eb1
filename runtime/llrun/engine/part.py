"""One device's part in a change of epoch: prepared beside the work that goes on, then taken up at a step boundary."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from llrun.device.load import Device
from llrun.engine.engine import Engine
from llrun.engine.events import Halting
from llrun.engine.events import Switch as Switching
from llrun.errors import INTERNAL, RunError
from llrun.programs.installed import Installed, install
from llrun.wire.links import Links
from llrun.wire.messages import (
    AnyMessage,
    Copy,
    Halt,
    Message,
    Mirror,
    Prepare,
    Prepared,
    Switch,
    Switched,
    Unprepared,
)
from llrun.wire.protocol import ProtocolError
from llrun.wire.transfers import Transfers
from llrun.wire.transport import Connection, ConnectionLost

CONNECT_S = 10.0
RETRY_S = 0.2
REASON_LIMIT = 4096
Dial = Callable[[str, float], Connection]
Dials = Callable[[str], bool]
Answer = Callable[[AnyMessage], None]


class Part:
    """What a device does that is told of a change, the head as any worker.

    `dials(peer)`: whether it is this device that makes the data connection with a peer, by `dial(peer, timeout_s)`;
    else the other does. `answer` is told what is to be told to the head. What takes long is done on a thread of its
    own, one Prepare after another; a newer one takes the place of what is not done.
    """

    def __init__(
        self,
        device: Device,
        engine: Engine,
        links: Links,
        transfers: Transfers,
        dials: Dials,
        dial: Dial,
        answer: Answer,
    ) -> None:
        self._device = device
        self._engine = engine
        self._links = links
        self._transfers = transfers
        self._dials = dials
        self._dial = dial
        self._answer = answer
        self._lock = threading.Lock()
        self._asked: Prepare | None = None
        self._ready: tuple[Prepare, Installed] | None = None
        self._reading = threading.Lock()
        self._halted = threading.Event()

    def tell(self, message: Message) -> bool:
        """Do what the head asks for; False for a message that is about something else. Raises RunError R207 for a
        switch to what was not prepared, ProtocolError for rows that are not here."""
        match message:
            case Prepare():
                with self._lock:
                    self._asked, self._ready = message, None
                self._links.wake()
                threading.Thread(target=self._prepare, args=(message,), name="prepare", daemon=True).start()
            case Halt():
                self._halted.clear()
                self._engine.inbox.put(Halting(message.epoch))
            case Switch():
                self._switch(message)
            case Copy():
                self._transfers.copy(message.transfer, message.destination, message.rows)
            case Mirror():
                self._transfers.mirror(message.ways)
            case _:
                return False
        return True

    def halted(self) -> None:
        """No step is there any more. Called from the engine's thread."""
        self._halted.set()

    def switched(self, installed: Installed) -> None:
        """The engine has taken up a program: admit its tensors, give up what it does not need. Called from the
        engine's thread."""
        self._halted.clear()
        self._links.install(installed)
        self._answer(Switched(installed.epoch))
        store = self._device.store
        with self._lock:
            asked = self._asked
        if asked is None or asked.epoch <= installed.epoch:  # else the next is being read already
            store.drop(store.resident.keys() - set(installed.blocks))

    def end(self) -> None:
        """The session is over: whatever is being prepared is not wanted any more."""
        with self._lock:
            self._asked = self._ready = None
        self._halted.set()
        self._links.wake()
        with self._reading:
            pass  # who reads has seen it

    def _switch(self, message: Switch) -> None:
        with self._lock:
            ready, self._ready = self._ready, None
        if ready is None or ready[0].epoch != message.epoch:
            raise RunError("R207", f"epoch {message.epoch} was not prepared here", INTERNAL)
        positions = {each.sequence: each.segments for each in message.positions}
        self._engine.inbox.put(Switching(ready[1], positions))

    def _prepare(self, message: Prepare) -> None:
        try:
            with self._reading:
                if self._asked is not message:
                    return
                installed = self._read(message)
            self._connect(message, installed.neighbours | frozenset(message.links))
        except RunError as error:
            if self._asked is message:
                self._answer(
                    Unprepared(message.epoch, message.attempt, error.code, error.message[:REASON_LIMIT])
                )
            return
        with self._lock:
            if self._asked is not message:
                return
            self._ready = message, installed
        self._answer(Prepared(message.epoch, message.attempt))

    def _read(self, message: Prepare) -> Installed:
        """Check the program and have its blocks in memory."""
        installed, store = install(self._device.record, message.program), self._device.store
        wanted = frozenset(installed.blocks)
        if message.drop:
            self._halted.wait()  # nothing runs on what is given up
            if self._asked is not message:
                return installed
            store.drop(store.resident.keys() - wanted)
        store.read(wanted)
        return installed

    def _connect(self, message: Prepare, peers: frozenset[str]) -> None:
        """Have data connections with `peers`. Raises RunError R302 that names who does not answer."""
        until = time.monotonic() + CONNECT_S
        for peer in sorted(peers - self._links.connected):
            if self._dials(peer):
                self._dial_until(message, peer, until)
        left_s = max(until - time.monotonic(), RETRY_S)
        self._links.wait(peers, left_s, lambda: self._asked is not message)

    def _dial_until(self, message: Prepare, peer: str, until: float) -> None:
        reason = "no answer in time"
        while self._asked is message:
            left_s = until - time.monotonic()
            try:
                with suppress(ConnectionLost):
                    self._links.attach(peer, self._dial(peer, max(left_s, RETRY_S)))
                    return
            except ProtocolError:
                return  # the session is over
            except RunError as error:
                reason = error.message
            if left_s < RETRY_S:
                raise RunError("R302", f"no data connection with device {peer}: {reason}", INTERNAL)
            time.sleep(RETRY_S)
