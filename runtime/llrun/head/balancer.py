"""Gives the balancing function its turn, away from the path of tokens, and begins what it asks for."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from llrun.head.balance import Policy, counts, used
from llrun.head.changes import Changes
from llrun.head.cluster import Cluster
from llrun.head.controls import Note
from llrun.head.feeding import Feeding
from llrun.head.hook import IMPOSSIBLE, Hook
from llrun.head.moves import MoveReason
from llrun.head.options import Balancing
from llrun.head.view import Event, EventKind, SequenceView, View, view_of
from llrun.schema import StageRecord

EVERY_S = 0.25
BAND = 1.3  # times slower or faster than before: less is noise
EVENTS_KEPT = 64  # that a function has not seen, as it is busy


class Balancer:
    """Offers views several times a second while requests run, and at once when a device is lost or joins."""

    def __init__(
        self, cluster: Cluster, changes: Changes, feeding: Feeding, balancing: Balancing, note: Note
    ) -> None:
        self._cluster = cluster
        self._changes = changes
        self._feeding = feeding
        self._own = callable(balancing.rebalance)
        function = balancing.rebalance if callable(balancing.rebalance) else Policy()
        self._hook = None if balancing.rebalance == "off" else Hook(function, note)
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._came: set[str] = set()  # devices that have joined and were given nothing to do yet
        self._begun = False
        self._next = 0.0
        self._pace = Pace()

    def happened(self, kind: EventKind, device: str) -> None:
        """A device was lost, has joined, or is slower or faster: the function is told with the next view. Who is there
        from the start has not joined."""
        if not self._begun:
            return
        self._events.append(Event(kind, device))
        if kind is EventKind.JOINED:
            self._came.add(device)

    def turn(self, now: float) -> None:
        """Begin what was asked for; offer another view when it is time."""
        self._begun = True
        if self._hook is None or not self._changes.steady:
            return
        asked = self._hook.take()
        if asked is not None:
            self._begin(self._hook, *asked)
        elif (now >= self._next or self._events) and self._measured():
            self._notice_pace()
            event = self._events[0] if self._events else Event(EventKind.STEP)
            if self._hook.offer(self._view(event)) and self._events:
                self._events.popleft()
            self._next = now + EVERY_S

    def close(self) -> None:
        if self._hook is not None:
            self._hook.close()

    def _begin(self, hook: Hook, view: View, stages: tuple[StageRecord, ...]) -> None:
        if stages == self._cluster.stages:
            return
        faults = self._cluster.placement().faults(stages, self._cluster.stages)
        if faults:
            hook.report(IMPOSSIBLE, f"asked for what cannot be: {faults[0]}")
            return
        reason, device = subject(view, stages, self._came)
        self._came -= used(stages)
        self._changes.move(stages, MoveReason.HOOK if self._own else reason, device)

    def _notice_pace(self) -> None:
        slowness = self._cluster.monitor.slowness()
        running = used(self._cluster.stages)
        device = self._pace.changed({name: slowness[name] for name in running & slowness.keys()})
        if device is not None:
            self.happened(EventKind.SLOW, device)

    def _measured(self) -> bool:
        """Whether there is anything to balance, and every device that runs has shown how fast it is."""
        histories = self._feeding.histories
        return any(each.to_come for each in histories.values()) and self._cluster.monitor.measured_all(
            used(self._cluster.stages)
        )

    def _view(self, event: Event) -> View:
        sequences = tuple(SequenceView(each.fed, each.to_come) for each in self._feeding.histories.values())
        free = {name: each.free_memory_bytes for name, each in self._cluster.monitor.devices.items()}
        return view_of(self._cluster.placement(), self._cluster.stages, sequences, event, free)


def subject(view: View, stages: Sequence[StageRecord], came: Iterable[str]) -> tuple[MoveReason, str]:
    """Why there is a change to these stages, and about whom: one of those that came, if it gets its first blocks, else
    the slowest of the devices whose work changes."""
    before, after = counts(view.stages), counts(stages)
    for name in sorted(came):
        if name in after and name not in before:
            return MoveReason.JOINED, name
    changed = [name for name in sorted(before.keys() | after.keys()) if before[name] != after[name]]
    return MoveReason.SLOW, max(changed or before, key=lambda name: view.devices[name].slowness)


class Pace:
    """Notices devices that become much slower or faster than they were when that was noticed last."""

    def __init__(self) -> None:
        self._known: dict[str, float] = {}

    def changed(self, slowness: Mapping[str, float]) -> str | None:
        """The device that changed the most, if any did by more than noise; each change is told once."""
        apart = {}
        for name, now in sorted(slowness.items()):
            known = self._known.setdefault(name, now)
            apart[name] = max(now / known, known / now) if now > 0 and known > 0 else 1.0
        most = max(apart, key=lambda each: apart[each], default=None)
        if most is None or apart[most] < BAND:
            return None
        self._known[most] = slowness[most]
        return most
