"""Changes of epoch: moves while tokens go on, and recovery from losses. Driven by what devices answer."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum

from llrun.engine.events import Feed
from llrun.errors import RunError
from llrun.head.cluster import Cluster
from llrun.head.copying import Copying
from llrun.head.feeding import Feeding
from llrun.head.loss_words import irreplaceable, taken_over
from llrun.head.mirroring import both, left_out, links_of, ways_of
from llrun.head.moves import Move, MoveReason, in_words
from llrun.head.options import Balancing
from llrun.head.replay import Rewind, after_move, by_block, parts_of, rewind
from llrun.programs.rated import devices_of, spans
from llrun.schema import StageRecord
from llrun.wire.messages import Copied, Halt, Halted, Message, Mirror, Prepared, Switched, Unprepared

Note = Callable[[str], None]
Go = Callable[[Sequence[Feed]], None]
RELINK_S = 0.5  # a device that died is told by its control connection within this
ATTEMPTS = 3
MOVES_KEPT = 1000


class Phase(StrEnum):
    """Of a move: `preparing`, `copying`, `quieting` (nothing new is fed), `closing` (the last rows). Of a recovery:
    `halting`. `waiting`: for a device that nothing can replace. `steady`: none of these."""

    STEADY = "steady"
    PREPARING = "preparing"
    COPYING = "copying"
    QUIETING = "quieting"
    CLOSING = "closing"
    HALTING = "halting"
    WAITING = "waiting"


class Changes:
    """What the head does about stages. Every method is called on the driver's thread.

    `opening`: sequences without a history: they begin at 0 then. `go` hands feeds to the engine. `moves`: the
    newest that were made. Raises RunError R301 from `tick` when a device that nothing can replace does not come back
    in time.
    """

    def __init__(
        self,
        cluster: Cluster,
        feeding: Feeding,
        opening: Iterable[int],
        balancing: Balancing,
        note: Note,
        go: Go,
    ) -> None:
        self._cluster = cluster
        self._feeding = feeding
        self._opening = opening
        self._balancing = balancing
        self._note = note
        self._go = go
        self._copying = Copying(cluster, feeding)
        self._phase = Phase.STEADY
        self._stages: tuple[StageRecord, ...] = ()  # the next ones
        self._reason, self._device = MoveReason.SLOW, ""
        self._awaiting: set[str] = set()  # who has not answered Prepare
        self._unhalted: set[str] = set()
        self._unswitched: set[str] = set()
        self._kept: dict[str, dict[int, dict[int, int]]] = {}
        self._attempts = 0
        self._until: float | None = None  # how long a lost device is waited for
        self._missing: dict[str, RunError] = {}  # devices that are waited for, and how they were lost
        self._relink_at: float | None = None
        self._unlinked = ""
        self._began_at = 0.0
        self.fed_at = 0.0
        self.tokens = 0
        self._mirrors_stale = False
        self._left_out: str | None = None  # of the caches that are not mirrored, what was said last
        self.moves: deque[Move] = deque(maxlen=MOVES_KEPT)

    # --- what the driver asks ---

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def steady(self) -> bool:
        """Whether a move may begin: none is under way, and every device has taken up the last one."""
        return self._phase == Phase.STEADY and not self._unswitched and self._relink_at is None

    @property
    def recovering(self) -> bool:
        """Whether tokens stand still until devices have answered, or come back."""
        return self._phase in (Phase.HALTING, Phase.WAITING)

    @property
    def deadline(self) -> float | None:
        """When `tick` has something to do, by time.monotonic."""
        return min((at for at in (self._until, self._relink_at) if at is not None), default=None)

    def tick(self) -> None:
        """Do what is due by now."""
        now = time.monotonic()
        if self._mirrors_stale:
            self.link_mirrors()
        if self._relink_at is not None and now >= self._relink_at:
            self._relink_at = None
            if self._phase != Phase.WAITING:
                self._note(
                    f"device {self._unlinked} lost a connection, which is made again; the answer goes on"
                )
                self._recover(MoveReason.LOST, self._unlinked)
        if self._until is not None and now >= self._until:
            device, reason = min(self._missing.items())
            raise irreplaceable(device, reason, self._cluster.stages, self._balancing.wait_s)

    # --- moves while tokens go on ---

    def move(self, stages: Sequence[StageRecord], reason: MoveReason, device: str | None) -> None:
        """Begin to change to `stages`, which Placement.faults has nothing against."""
        self._phase, self._stages = Phase.PREPARING, tuple(stages)
        self._reason, self._device = reason, device or ""
        self._awaiting = set(self._cluster.alive)
        self._copying.plan(self._stages)
        self._cluster.prepare(self._stages, False, self._links())

    def _next_round(self) -> None:
        """Copy what was computed since the last round; when that is little, feed nothing more until all is there."""
        if self._copying.nearly_done() and self._phase == Phase.COPYING:
            self._phase = Phase.QUIETING
            self._feeding.held = True
            self._began_at = self.fed_at or time.perf_counter()
            self.steps_done()
        elif self._phase == Phase.COPYING:
            self._copying.begin_round()  # where nothing is computed yet, steps that are done will begin it

    def steps_done(self) -> None:
        """Steps were done: there is more to copy, or nothing under way any more."""
        if self._phase == Phase.COPYING and not self._copying.under_way:
            self._next_round()
        if self._phase == Phase.QUIETING and self._feeding.progress.quiet():
            self._phase = Phase.CLOSING
            self._close_or_switch()

    def _close_or_switch(self) -> None:
        """Copy what is left, that of sequences which began meanwhile too; then all is where it is to be."""
        if not self._copying.begin_round(last=True):
            self._switch_over()

    def _switch_over(self) -> None:
        """Everything is where it is to be: the next step is of the next epoch."""
        before = self._cluster.stages
        ways = [
            after_move(number, history, before, self._stages, self._cluster.cached)
            for number, history in self._feeding.histories.items()
        ]
        self._take_up(ways)
        self._feed_again([way for way in ways if way.again])
        if made := self._go_on(self._copying.moved_bytes, sum(way.again for way in ways)):
            self._note(in_words(made, before))

    def _give_up(self) -> None:
        """The move is not made. Its epoch has not begun, so its number is used again."""
        if self._phase in (Phase.PREPARING, Phase.COPYING, Phase.QUIETING, Phase.CLOSING):
            self._phase = Phase.STEADY
            self._awaiting.clear()
            self._copying.stop()
            self._feeding.held = False

    # --- losses ---

    def lost(self, device: str, reason: RunError) -> None:
        """A device that took part is gone. The cluster does not have it any more."""
        needed = self._cluster.runs(device)
        next_too = device in devices_of(self._stages)
        self._unswitched.discard(device)
        if self._phase == Phase.HALTING:
            self._missing[device] = reason
            self._recover(MoveReason.LOST, device)
        elif self._phase == Phase.WAITING:
            self._missing[device] = reason
        elif needed:
            self._missing[device] = reason
            self._give_up()
            self._recover(MoveReason.LOST, device)
        else:
            if next_too or device in self._awaiting or self._copying.involves(device):
                self._give_up()
                self._go(self._feeding.release())
            self.link_mirrors()

    def silent(self, device: str, reason: RunError) -> bool:
        """A device is silent: whether it is to be taken for lost. One that nothing can replace is waited for."""
        if not self._cluster.runs(device) and self._phase != Phase.HALTING:
            return True
        others = self._cluster.alive - {device}
        if self._cluster.placement(others).best() is not None:
            return True
        self._give_up()
        self._missing[device] = reason
        self._wait()
        return False

    def back(self, device: str) -> None:
        """A device that was silent is heard again: where it was waited for, all goes on."""
        self._missing.pop(device, None)
        if self._phase == Phase.WAITING and not self._missing:
            self._phase, self._until = Phase.STEADY, None
            self._feeding.held = False
            self._note(f"device {device} is heard again: the answer goes on")
            self._go(self._feeding.release())

    def joined(self, device: str) -> None:
        """A device takes part that did not."""
        self._missing.pop(device, None)
        if self._phase == Phase.WAITING:
            self._recover(MoveReason.JOINED, device)
        else:
            self.link_mirrors()

    def unlinked(self, device: str, other: str) -> None:
        """Two devices have lost each other. One of them may be gone; if not, they are linked anew."""
        if device in self._cluster.alive and other in self._cluster.alive and self._relink_at is None:
            self._relink_at = time.monotonic() + RELINK_S
            self._unlinked = min({device, other} - {self._cluster.head})  # whichever of them tells it first

    def start(self, missing: dict[str, RunError]) -> None:
        """Begin the session without devices that have stages in the plan."""
        self._missing = dict(missing)
        self._recover(MoveReason.LOST, min(missing))

    def _recover(self, reason: MoveReason, device: str) -> None:
        """Halt what is left, and go on in the best way that there is."""
        self._relink_at = None
        stages = self._stages_left()
        if stages is None:
            self._wait()
            return
        if self._phase not in (Phase.HALTING, Phase.WAITING):
            self._began_at, self._attempts = self.fed_at or time.perf_counter(), 0
        self._phase, self._stages, self._until = Phase.HALTING, stages, None
        self._reason, self._device = reason, device
        self._feeding.held = True
        self._kept.clear()
        self._awaiting, self._unhalted = set(self._cluster.alive), set(self._cluster.alive)
        self._unswitched.clear()
        if device in self._missing and self._cluster.runs(device):
            self._note(taken_over(device, self._missing[device], self._cluster.stages, stages))
        self._cluster.tell_all(Halt(self._cluster.epoch + 1))
        self._copying.plan(self._cluster.stages)
        self._cluster.prepare(stages, True, self._links())

    def _stages_left(self) -> tuple[StageRecord, ...] | None:
        """The stages that are taken now: the present ones when they still can be."""
        placement = self._cluster.placement()
        if not placement.faults(self._cluster.stages):
            return self._cluster.stages
        histories = self._feeding.histories.values()
        held, to_come = [each.fed for each in histories], max((each.to_come for each in histories), default=0)
        lost = devices_of(self._cluster.stages) - self._cluster.alive
        return placement.best(self._cluster.stages, held, float(to_come), lost)

    def _halted(self) -> None:
        """All stand still, and have what they are to run: where each sequence goes on, and from where it is fed."""
        ways = [
            rewind(number, history, self._stages, self._cluster.cached, self._kept)
            for number, history in self._feeding.histories.items()
        ]
        self._missing.clear()
        self._take_up(ways)
        self._feed_again(ways)
        self._go_on(0, sum(way.again for way in ways))

    def _wait(self) -> None:
        """Nothing can replace what is missing: wait for it."""
        self._phase = Phase.WAITING
        self._feeding.held = True
        if self._until is None:
            self._until = time.monotonic() + self._balancing.wait_s
            if self._balancing.wait_s:
                missing = ", ".join(sorted(self._missing))
                self._note(
                    f"device {missing} was lost, and nothing can take its place: waiting"
                    f" {self._balancing.wait_s:g} s for it (--wait)"
                )

    # --- what both end with ---

    def _take_up(self, ways: Sequence[Rewind]) -> None:
        named = {way.sequence for way in ways}
        zero = (0,) * len(self._stages)
        opening = [Rewind(number, zero, 0, 0) for number in sorted(self._opening) if number not in named]
        self._unswitched = set(self._cluster.alive)
        self._cluster.switch(self._stages, [*ways, *opening], self._feeding.progress)

    def _feed_again(self, ways: Sequence[Rewind]) -> None:
        mine = parts_of(self._stages)
        for way in ways:
            self._feeding.rewind(way, mine)

    def _go_on(self, moved_bytes: int, again: int) -> Move | None:
        """Feed again; the move that was made, None where stages are the same and only connections were made."""
        self._phase = Phase.STEADY
        self._feeding.held = False
        now = time.perf_counter()
        pause_s = max(now - self._began_at, 0.0) if self.tokens else 0.0
        device, made = self._device or None, None
        if device is not None or self._reason == MoveReason.HOOK:
            what = self.tokens, self._cluster.epoch, self._reason, device, self._stages
            made = Move(*what, pause_s, moved_bytes, again, now)
            self.moves.append(made)
        self._go(self._feeding.release())
        return made

    def mirror(self) -> None:
        """With --mirror: have each worker's caches copied to where its blocks would go if it were lost."""
        if self._balancing.mirror and self._phase == Phase.STEADY:
            for device, ways in ways_of(self._cluster, self._cluster.stages).items():
                self._cluster.tell(device, Mirror(ways))
            if (words := left_out(self._cluster.stages)) != self._left_out and words:
                self._note(words)
            self._left_out = words

    def _links(self) -> dict[str, set[str]]:
        """Whom devices have to be connected with beside their neighbours: to copy, and to mirror."""
        mirrored = links_of(ways_of(self._cluster, self._stages)) if self._balancing.mirror else {}
        self._mirrors_stale = False
        return both(self._copying.links(), mirrored)

    def link_mirrors(self) -> None:
        """With --mirror: who would take over is another now. Have the connections that it takes, by a change to the
        same stages, as soon as one may begin."""
        self._mirrors_stale = self._balancing.mirror
        if self._mirrors_stale and self.steady:
            self.move(self._cluster.stages, MoveReason.JOINED, None)

    # --- what devices answer ---

    def heard(self, device: str, message: Message) -> None:
        """An answer of a device that takes part."""
        match message:
            case Prepared() if message.attempt == self._cluster.attempt:
                self._awaiting.discard(device)
                self._advance()
            case Unprepared() if message.attempt == self._cluster.attempt and device in self._awaiting:
                self._unprepared(device, message)
            case Halted() if message.epoch == self._cluster.epoch + 1:
                self._kept[device] = by_block(message.held)
                self._unhalted.discard(device)
                self._advance()
            case Copied():
                if self._copying.copied(message.transfer):
                    self._round_done()
            case Switched():
                if message.epoch == self._cluster.epoch:
                    self._unswitched.discard(device)
                    if not self._unswitched:
                        self.mirror()  # not before, when it would be of the last program

    def _advance(self) -> None:
        if self._awaiting:
            return
        if self._phase == Phase.PREPARING:
            self._phase = Phase.COPYING
            self._next_round()
        elif self._phase == Phase.HALTING and not self._unhalted:
            self._halted()

    def _round_done(self) -> None:
        if self._phase == Phase.COPYING:
            self._next_round()
        elif self._phase == Phase.CLOSING:
            self._close_or_switch()

    def _unprepared(self, device: str, said: Unprepared) -> None:
        """A device cannot do what it is to do: another way, or none."""
        new, old = (self._cluster.pieces(stages, device) for stages in (self._stages, self._cluster.stages))
        if self._phase == Phase.PREPARING:
            self._note(f"the stages stay as they are: device {device} cannot change: {said.reason}")
            self._bar(device, new - old)
            self._give_up()
            self._go(self._feeding.release())
            return
        self._attempts += 1
        if said.code != "R302" or self._attempts >= ATTEMPTS:
            blocks = spans(self._cluster.blocks_of(new - old))
            self._note(f"device {device} cannot take over blocks {blocks}: {said.reason}")
            self._bar(device, new - old or new)
        self._recover(self._reason, self._device)

    def _bar(self, device: str, blocks: set[int]) -> None:
        self._cluster.barred.setdefault(device, set()).update(blocks)
