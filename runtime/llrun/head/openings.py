"""Sequences that are being opened, and those that nobody uses any more, whose caches others go on from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from llrun.engine.events import Closing, Event, Opening
from llrun.errors import INTERNAL, RunError
from llrun.head.cluster import Cluster
from llrun.head.feeding import Feeding
from llrun.wire.messages import Close, Message, Open, Rejected


@dataclass(frozen=True)
class Parked:
    """A sequence without a request. `ids`: those that the devices' caches hold, as long as `epoch` lasts."""

    ids: tuple[int, ...]
    epoch: int


class Openings:
    """Sequences by number, until `feeding` has their history. `tell`: says it to every worker, and to the engine here.

    Iterating gives the numbers of those that the devices have and `feeding` has not: in another epoch they begin at 0.
    """

    def __init__(self, cluster: Cluster, feeding: Feeding, tell: Callable[[Message, Event], None]) -> None:
        self._cluster = cluster
        self._feeding = feeding
        self._tell = tell
        self._next = 0
        self._waiting: dict[int, set[str]] = {}  # sequences, and the devices that have not said anything yet
        self._begun: dict[int, Parked] = {}  # of those, what they go on from
        self._parked: dict[int, Parked] = {}
        self._refused: dict[int, RunError] = {}

    def __iter__(self) -> Iterator[int]:
        yield from sorted({*self._waiting, *self._parked})

    @property
    def numbers(self) -> list[int]:
        """Every sequence that is open for someone, or is being opened. From any thread."""
        return sorted({*self._waiting, *self._feeding.histories})

    @property
    def parked(self) -> Mapping[int, Parked]:
        """Those that can be gone on from, the oldest first. Others are given up: their caches hold nothing any more."""
        for number in [n for n, each in self._parked.items() if each.epoch != self._cluster.epoch]:
            self.drop(number)
        return self._parked

    def begin(self, after: int | None, tokens: int) -> int:
        """Ask every device to make room for a sequence; its number. `after`: a parked one, which is no more: it goes on
        after its first `tokens`."""
        number = self._next
        self._next += 1
        self._waiting[number] = set(self._cluster.alive)
        if after is not None:
            ids = self._parked.pop(after).ids[:tokens]
            self._begun[number] = Parked(ids, self._cluster.epoch)
        self._tell(Open(number, after, tokens), Opening(number, after, tokens))
        return number

    def park(self, number: int) -> None:
        """Nobody uses it any more, and nothing of it is under way."""
        history = self._feeding.history(number)
        self._parked[number] = Parked(tuple(history.ids[: history.fed]), self._cluster.epoch)
        self._feeding.forget(number)

    def drop(self, number: int) -> None:
        """Give a parked sequence up."""
        if self._parked.pop(number, None):
            self._tell(Close(number), Closing(number))

    def forget(self, number: int) -> None:
        """It is closed."""
        for each in (self._waiting, self._begun, self._refused):
            each.pop(number, None)

    def is_open(self, number: int) -> bool:
        """Whether every device has made room. Raises the RunError of a device that has none."""
        if number in self._refused:
            raise self._refused.pop(number)
        return number in self._feeding

    def opened(self, device: str, number: int) -> None:
        """A device has made room, or takes no part any more."""
        if number not in self._waiting:  # it was refused by another, or is not wanted any more
            return
        self._waiting[number].discard(device)
        if not self._waiting[number]:
            del self._waiting[number]
            begun = self._begun.pop(number, None)
            # In another epoch than that in which it was asked for its caches hold nothing.
            goes_on = begun is not None and begun.epoch == self._cluster.epoch
            self._feeding.begin(number, begun.ids if begun and goes_on else ())

    def lost(self, device: str) -> None:
        """A device takes no part any more: nobody waits for it."""
        for number in list(self._waiting):
            self.opened(device, number)

    def rejected(self, device: str, said: Rejected) -> bool:
        """A device has no room; whether that matters. The sequence is to be closed then, on those that have made it."""
        if said.sequence not in self._waiting:
            return False
        reason = f"device {device} has no room for another conversation: {said.reason}"
        self.forget(said.sequence)
        self._refused[said.sequence] = RunError(said.code, reason, INTERNAL)
        return True
