"""Who takes part in a session: devices reached at its start, those that are lost, and those that come later."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from llrun.errors import INTERNAL, LOST, RunError, lost
from llrun.head.changes import Changes, Phase
from llrun.head.cluster import Cluster, programs_of, takers
from llrun.head.controls import Note
from llrun.head.feeding import Feeding
from llrun.head.replies import Back, Came, Gone, Refused, Reply, Said, Silent, Unlinked
from llrun.programs.rated import devices_of
from llrun.wire.links import Links
from llrun.wire.messages import (
    AnyMessage,
    AskFigures,
    Close,
    Configure,
    Configured,
    Connect,
    LostPeer,
    Message,
    Open,
    Opened,
    Ready,
    Rejected,
)
from llrun.wire.protocol import BUSY, LOADING
from llrun.wire.transport import Connection, ConnectionLost

START_S = 10.0  # a device that others can do without is waited for so long at the start
DATA_S = 30.0
GRACE_S = 0.25
MOST_FAILURES = 2  # of a kind that is not a loss: such a device is not taken back
Happening = Gone | Silent | Back | Came | Refused | Unlinked
TakeIn = Callable[[Reply], None]
Parted = Callable[[str, bool], None]


@dataclass
class Joining:
    """A device that has come while the session goes on. `epoch`: when it came; `unopened`: sequences it has not made
    room for yet, None before it knows the session."""

    epoch: int
    unopened: set[int] | None = None


class Membership:
    """Keeps `cluster.alive`. Every method is called on the driver's thread.

    `open_numbers`: the sequences that are open now; `parted` is told who takes part from now on, or no more.
    `capacity`: how many sequences there is room for on every worker.
    """

    def __init__(
        self,
        cluster: Cluster,
        changes: Changes,
        feeding: Feeding,
        open_numbers: Callable[[], Sequence[int]],
        parted: Parted,
        links: Links,
        note: Note,
    ) -> None:
        self._cluster = cluster
        self._controls = cluster.controls
        self._changes = changes
        self._feeding = feeding
        self._open_numbers = open_numbers
        self._parted = parted
        self._links = links
        self._note = note
        self._joining: dict[str, Joining] = {}
        self._came: dict[str, Connection] = {}
        self._failures: dict[str, int] = {}
        self._refused: dict[str, RunError] = {}
        self._unconfigured: set[str] = set()
        self._unready: set[str] = set()
        self._setting_up = True
        self.capacity = 1 << 31

    # --- setting up ---

    def connect(self, replies: SimpleQueue[Reply], timeout_s: float, take_in: TakeIn) -> None:
        """Reach every device that has a stage, one after the other in the order of their names, so that of two heads
        one gets all workers; then configure and link them. One that others can do without is not waited for longer
        than START_S, and those without a stage not at all: they take part once they listen.

        Raises RunError: R302 that names who did not come in time and why, its refusal, or the loss of one that was
        reached before.
        """
        needed = devices_of(self._cluster.stages) - {self._cluster.head}
        missing: dict[str, RunError] = {}
        for name in sorted(self._controls.addresses):
            self._controls.look_for(name, needed=name in needed)
            if name in needed and not self._reach(name, replies, timeout_s, take_in, missing):
                missing[name] = self._controls.why(name)
        present = sorted(needed - missing.keys())
        self._configure(present, replies, timeout_s, take_in)
        self._setting_up = False
        if missing:
            self._cluster.alive.update(present)
            self._changes.start(missing)
            self._until(lambda: self._changes.steady, replies, timeout_s, take_in)
        else:
            self._link(present, replies, timeout_s, take_in)

    def _reach(
        self,
        name: str,
        replies: SimpleQueue[Reply],
        timeout_s: float,
        take_in: TakeIn,
        missing: dict[str, RunError],
    ) -> bool:
        """Wait for a device; False when it has not come, and others can do without it."""
        began = time.monotonic()
        while name not in self._came:
            if name in self._refused:
                raise self._refused[name]
            waited_s = time.monotonic() - began
            if self._controls.why(name).code == LOADING:
                began = time.monotonic()  # it lives: what is waited for comes nearer
            elif waited_s > timeout_s:
                raise self._controls.why(name)
            elif waited_s > START_S and self._absent(name) and self._can_do_without({*missing, name}):
                return False
            self._take_one(replies, take_in)
        self._controls.take(name, self._came.pop(name))
        return True

    def _absent(self, name: str) -> bool:
        """Whether nobody answers there: one that serves another head is waited for, so that two don't share them."""
        return self._controls.why(name).code != BUSY

    def _can_do_without(self, missing: set[str]) -> bool:
        everyone = {*self._controls.connected, *self._came, self._cluster.head}
        everyone |= {name for name in self._controls.addresses if name > max(missing)}
        return self._cluster.placement(everyone - missing).best() is not None

    def _configure(
        self, present: Sequence[str], replies: SimpleQueue[Reply], timeout_s: float, take_in: TakeIn
    ) -> None:
        self._unconfigured = set(present)
        for name in present:
            self._tell_configuration(name)
        self._until(lambda: not self._unconfigured, replies, timeout_s, take_in)

    def _link(
        self, present: Sequence[str], replies: SimpleQueue[Reply], timeout_s: float, take_in: TakeIn
    ) -> None:
        """Make the data connections of the plan's own programs."""
        programs = programs_of(
            self._cluster.record, self._cluster.stages, self._cluster.epoch, [*present, self._cluster.head]
        )
        until = time.monotonic() + DATA_S
        for name in sorted(self._links.needed):
            try:
                self._links.attach(name, self._controls.dial_data(name, until - time.monotonic()))
            except ConnectionLost as error:
                raise lost(name, str(error)) from error
        self._unready = set(present)
        for name in present:
            self._controls.tell(name, Connect())
        self._until(lambda: not self._unready, replies, timeout_s, take_in)
        self._cluster.alive.update(present)
        for name in present:
            self._parted(name, True)
        self._feeding.progress.plan(*takers(programs))

    def _until(
        self, done: Callable[[], bool], replies: SimpleQueue[Reply], timeout_s: float, take_in: TakeIn
    ) -> None:
        until = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > until:
                behind = ", ".join(sorted(self._unconfigured | self._unready)) or "a device"
                raise RunError("R305", f"{behind} did not answer for {timeout_s:g} s (--timeout)", INTERNAL)
            self._take_one(replies, take_in)
            self._changes.tick()

    def _take_one(self, replies: SimpleQueue[Reply], take_in: TakeIn) -> None:
        try:
            reply = replies.get(timeout=GRACE_S)
        except Empty:
            return
        if isinstance(reply, Said) and reply.device in self._controls.connected:
            self._set_up(reply.device, reply.message)
        take_in(reply)

    def _set_up(self, device: str, message: AnyMessage) -> None:
        match message:
            case Configured():
                self._unconfigured.discard(device)
                self.capacity = min(self.capacity, message.sequences)
            case Ready():
                self._unready.discard(device)

    # --- what is said ---

    def takes_part(self, said: Said) -> bool:
        """Whether a message is of a device that takes part, over the connection that is its now."""
        return said.connection is None or (
            said.device in self._cluster.alive and self._is_current(said.device, said.connection)
        )

    def said(self, device: str, message: AnyMessage) -> bool:
        """Whether a message was about who is linked with whom."""
        if isinstance(message, LostPeer):
            self._changes.unlinked(device, message.device)
        return isinstance(message, LostPeer | Ready | Configured)

    def heard(self, said: Said) -> None:
        """A message of a device that does not take part yet."""
        joining = self._joining.get(said.device)
        if joining is None or said.connection is None or not self._is_current(said.device, said.connection):
            return
        match said.message:
            case Configured():
                self.capacity = min(self.capacity, said.message.sequences)
                joining.unopened = set(self._open_numbers())
                for number in sorted(joining.unopened):
                    self._controls.tell(said.device, Open(number))
                self._joined_if_whole(said.device, joining)
            case Opened():
                if joining.unopened is not None:
                    joining.unopened.discard(said.message.sequence)
                self._joined_if_whole(said.device, joining)
            case Rejected():
                self._note(
                    f"device {said.device} has no room for all conversations: it is not taken back now"
                )
                self._send_away(said.device)
            case _:
                pass

    def tell_all(self, message: Message) -> None:
        """Say it to every worker that takes part; what is about sequences also to those that are about to."""
        for device in sorted(self._cluster.alive - {self._cluster.head}):
            for each in _as_told(message, self._cluster.runs(device)):
                self._controls.tell(device, each)
        for device, joining in self._joining.items():
            if joining.unopened is not None and not isinstance(message, AskFigures):
                for each in _as_told(message, False):
                    self._controls.tell(device, each)
                if isinstance(message, Open):
                    joining.unopened.add(message.sequence)

    # --- what happens ---

    def tick(self) -> None:
        """Let those in that have come, when nothing is under way that they would disturb."""
        if (
            self._came
            and not self._setting_up
            and (self._changes.steady or self._changes.phase == Phase.WAITING)
        ):
            for device, connection in self._came.items():
                self._joining[device] = Joining(self._cluster.epoch)
                self._controls.take(device, connection)
                self._tell_configuration(device)
            self._came.clear()

    def happened(self, what: Happening) -> None:
        match what:
            case Came():
                self._came[what.device] = what.connection
            case Gone():
                if self._is_current(what.device, what.connection):
                    self._gone(what.device, _failure(what.device, what.reason, what.code))
            case Silent():
                away, reason = what.device not in self._cluster.alive, lost(what.device, what.reason)
                if self._setting_up or away or self._changes.silent(what.device, reason):
                    self._gone(what.device, reason)
            case Back():
                self._changes.back(what.device)
            case Refused():
                self._refused[what.device] = what.error
                if not (self._setting_up and self._cluster.runs(what.device)):
                    self._note(f"going on without device {what.device}: {what.error.message}")
            case Unlinked():
                self._changes.unlinked(self._cluster.head, what.device)

    def _gone(self, device: str, reason: RunError) -> None:
        if device not in self._controls.connected:
            return
        self._controls.drop(device)
        self._came.pop(device, None)
        if self._setting_up:
            raise reason
        taking_part = device in self._cluster.alive
        self._joining.pop(device, None)
        self._cluster.alive.discard(device)
        self._failures[device] = self._failures.get(device, 0) + (reason.code != LOST)
        if self._failures[device] < MOST_FAILURES:
            self._controls.look_for(device, told=True)
        if taking_part:
            self._cluster.monitor.forget(device)
            self._changes.lost(device, reason)
            self._parted(device, False)

    def _joined_if_whole(self, device: str, joining: Joining) -> None:
        if joining.unopened is None or joining.unopened:
            return
        del self._joining[device]
        if joining.epoch != self._cluster.epoch or self._changes.phase not in (Phase.STEADY, Phase.WAITING):
            self._joining[device] = joining
            self._send_away(device)  # it is of an epoch that has gone by: it comes again
            return
        self._cluster.alive.add(device)
        self._parted(device, True)
        self._note(f"device {device} takes part")
        self._changes.joined(device)

    def _send_away(self, device: str) -> None:
        self._joining.pop(device, None)
        self._controls.drop(device)
        self._controls.look_for(device, told=True)

    def _tell_configuration(self, device: str) -> None:
        addresses = self._cluster.addresses
        self._controls.tell(device, Configure(self._controls.session, self._cluster.epoch, addresses))

    def _is_current(self, device: str, connection: Connection) -> bool:
        return self._controls.connection(device) is connection


def _failure(device: str, reason: str, code: str) -> RunError:
    return lost(device, reason) if code == LOST else RunError(code, f"device {device}: {reason}", INTERNAL)


def _as_told(message: Message, runs: bool) -> list[Message]:
    """What is said to a device that `runs` a stage, or none: that has nothing in its caches to go on from."""
    if isinstance(message, Open) and message.after is not None and not runs:
        return [Close(message.after), Open(message.sequence)]
    return [message]
