"""What an engine is told: tensors that arrived, tokens to feed, sequences opened and closed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import NamedTuple

from llrun.errors import RunError
from llrun.memory import Array
from llrun.programs.installed import Installed
from llrun.wire.protocol import Header, ProtocolError
from llrun.wire.pump import Pump

INBOX_LIMIT = 4096


@dataclass(frozen=True)
class Arrived:
    """A tensor from device `source`, its size checked: of one step, or a row of each of several, a header for each."""

    source: str
    headers: tuple[Header, ...]
    array: Array


class Feed(NamedTuple):
    """New tokens of a sequence, on the head: token ids int64 (1, n)."""

    sequence: int
    position: int
    flags: int
    ids: Array


@dataclass(frozen=True)
class Fed:
    """What the head feeds at once: single tokens of several sequences are computed in one pass."""

    feeds: tuple[Feed, ...]


@dataclass(frozen=True)
class Opening:
    """`after`: a sequence that is no more then; the new one begins with its first `tokens`."""

    sequence: int
    after: int | None = None
    tokens: int = 0


@dataclass(frozen=True)
class Closing:
    sequence: int


@dataclass(frozen=True)
class Asking:
    """Somebody wants the figures."""


@dataclass(frozen=True)
class Halting:
    """Drop every step under way, at the next boundary between segments, and run nothing until the program of `epoch`,
    which is the next: a device was lost, and what it should have made will never come."""

    epoch: int


@dataclass(frozen=True)
class Switch:
    """Another program, of the next epoch, from the next step boundary on.

    `positions`: where each open sequence goes on, by number, a position for each segment. No block of the segment may
    hold less of the sequence, and no segment may be ahead of one after it: what is computed again begins at the first
    one that needs it, and passes by those that are past it.

    Devices may switch one after another, but no step may be under way on any when the first is told: what it sent
    would be of an epoch that others have left.
    """

    installed: Installed
    positions: Mapping[int, Sequence[int]]


@dataclass(frozen=True)
class Stop:
    """End the loop; with an error, because of it."""

    error: RunError | None = None


Event = Arrived | Fed | Opening | Closing | Asking | Halting | Switch | Stop


class Inbox(SimpleQueue[Event]):
    """The only way into an engine, safe from any thread; bounded for what comes over the links.

    With a `pump`, who takes events out reads connections while there are none.
    """

    def __init__(self, pump: Pump | None = None) -> None:
        super().__init__()
        self.pump = pump

    def put(self, item: Event, block: bool = True, timeout: float | None = None) -> None:
        super().put(item)
        if self.pump is not None:
            self.pump.wake()

    def get(self, block: bool = True, timeout: float | None = None) -> Event:
        if self.pump is not None:
            self.pump.wait(self._any)
        return super().get(block, timeout)

    def look(self) -> None:
        """Take in what the pump has."""
        if self.pump is not None:
            self.pump.look()

    def close(self) -> None:
        """Nobody takes anything out any more."""
        if self.pump is not None:
            self.pump.close()

    def _any(self) -> bool:
        return not self.empty()

    def deliver(self, source: str, headers: tuple[Header, ...], array: Array) -> None:
        """Put a tensor in. Raises ProtocolError when INBOX_LIMIT events are waiting already."""
        if self.qsize() >= INBOX_LIMIT:
            raise ProtocolError(f"{INBOX_LIMIT} tensors are waiting already")
        self.put(Arrived(source, headers, array))
