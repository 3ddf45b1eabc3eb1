"""What goes to the devices when: chunks of prompts as they can be taken, single tokens at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from llrun.engine.events import Feed
from llrun.errors import RunError
from llrun.head.history import History
from llrun.memory import ALIGNMENT, Array, empty
from llrun.schema import ModelInfo
from llrun.wire.protocol import ALL_ROWS, LAST_CHUNK

CHUNKS_A_DEVICE = 2
ROWS = 256


class Feeding:
    """Every sequence's history, and the chunks that wait or are under way.

    Chunks go in the order in which they were asked for, while fewer are under way than keep every device
    busy. A token of a sequence of which nothing waits overtakes them: conversations go on while a long
    prompt is computed.
    """

    def __init__(self, model: ModelInfo, devices: int) -> None:
        self._context, self._chunk = model.shapes.context, model.shapes.chunk
        self._devices = devices
        self._histories: dict[int, History] = {}
        self._waiting: deque[Feed] = deque()
        self._due: dict[tuple[int, int], int] = {}  # chunks under way: devices that have not done them
        self._rows: list[Array] = []  # for tokens yet to come: making each anew takes longer than feeding it
        self._partial: set[str] = set()
        self.newest: tuple[int, int] | None = None

    def __contains__(self, number: int) -> bool:
        return number in self._histories

    def history(self, number: int) -> History:
        return self._histories[number]

    def begin(self, number: int) -> None:
        self._histories[number] = History()

    def only_last(self, device: str) -> None:
        """`device` takes part in a prompt's last chunk alone."""
        self._partial.add(device)

    def forget(self, number: int) -> None:
        """The sequence is closed: nothing of it waits or is under way any more."""
        self._histories.pop(number, None)
        self._waiting = deque(feed for feed in self._waiting if feed.sequence != number)
        self._due = {step: due for step, due in self._due.items() if step[0] != number}

    def withdraw(self, number: int) -> None:
        """What has not gone yet stays in the history, and goes when it is asked for again."""
        self._waiting = deque(feed for feed in self._waiting if feed.sequence != number)
        self._histories[number].withdraw()

    def add(self, numbers: Iterable[int], all_rows: bool) -> list[Feed]:
        """Of each sequence, all that was not asked for before: what goes at once. Raises RunError R105
        beyond the context."""
        histories = [(number, self._histories[number]) for number in numbers]
        for _, history in histories:
            if len(history.ids) > self._context:
                raise RunError(
                    "R105", f"{len(history.ids)} tokens are more than the context of {self._context}"
                )
        going = []
        for number, history in histories:
            if history.fed == history.queued == len(history.ids) - 1 and not all_rows:
                going.append(self._token(number, history))
            else:
                self._waiting.extend(self._chunked(number, history.queued, history.take(), all_rows))
        return going + self.release() if self._waiting else going

    def release(self) -> list[Feed]:
        """Waiting chunks that may go now."""
        going = []
        while self._waiting and (
            self._waiting[0].ids.shape[1] == 1 or len(self._due) < CHUNKS_A_DEVICE * self._devices
        ):
            going.append(self._gone(self._waiting.popleft()))
        return going

    def done(self, step: tuple[int, int]) -> bool:
        """A device has done a step; whether it was the last one to do a chunk, so that others may go."""
        due = self._due.get(step)
        if due is None:
            return False
        if due > 1:
            self._due[step] = due - 1
            return False
        del self._due[step]
        return True

    @property
    def under_way(self) -> int:
        """Chunks that the devices have been given and not done."""
        return len(self._due)

    def _token(self, number: int, history: History) -> Feed:
        """The one token that is not fed yet: decoding does nothing else, so it is quick."""
        position = history.fed
        if not self._rows:
            lines = empty((ROWS, ALIGNMENT // 8), "int64")
            self._rows = [line.reshape(1, 1) for line in lines[:, :1]]
        array = self._rows.pop()
        array[0, 0] = history.ids[position]
        history.queued = history.fed = position + 1
        self.newest = number, position
        return Feed(number, position, LAST_CHUNK, array)

    def _gone(self, feed: Feed) -> Feed:
        """Keep count of a feed that goes to the devices."""
        self.newest = feed.sequence, feed.position
        rows = feed.ids.shape[1]
        self._histories[feed.sequence].fed = feed.position + rows
        if rows > 1:
            absent = 0 if feed.flags & (LAST_CHUNK | ALL_ROWS) else len(self._partial)
            self._due[self.newest] = self._devices - absent
        return feed

    def _chunked(self, number: int, position: int, ids: list[int], all_rows: bool) -> list[Feed]:
        chunk, feeds = self._chunk, []
        for start in range(0, len(ids), chunk):
            part = ids[start : start + chunk]
            array = empty((1, len(part)), "int64")
            array[0] = part
            flags = (LAST_CHUNK if start + chunk >= len(ids) else 0) | (ALL_ROWS if all_rows else 0)
            feeds.append(Feed(number, position + start, flags, array))
        return feeds
