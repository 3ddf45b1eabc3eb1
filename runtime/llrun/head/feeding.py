"""What goes to the devices when: chunks of prompts as they can be taken, single tokens at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from llrun.engine.events import Feed
from llrun.errors import RunError
from llrun.head.history import History
from llrun.head.progress import Progress
from llrun.head.replay import Rewind
from llrun.memory import ALIGNMENT, Array, empty
from llrun.schema import ModelInfo
from llrun.wire.messages import StepDone
from llrun.wire.protocol import AHEAD, ALL_ROWS, DRAFTS, LAST_CHUNK, REPLAY

CHUNKS_A_DEVICE = 2
ROWS = 256
NO_DRAFTS: Mapping[int, Sequence[int]] = {}


class Feeding:
    """Every sequence's history, and the chunks that wait or are under way. `portion`: of so many tokens the rows of
    each chunk.

    Chunks go in the order in which they were asked for, while fewer are under way than keep every device
    busy. A token of a sequence of which nothing waits overtakes them: conversations go on while a long
    prompt is computed. While it is on `hold` nothing goes.
    """

    def __init__(self, model: ModelInfo, portion: Callable[[int], int]) -> None:
        self._context, self._portion = model.shapes.context, portion
        self._histories: dict[int, History] = {}
        self._waiting: deque[Feed] = deque()
        self._rows: list[Array] = []  # for tokens yet to come: making each anew takes longer than feeding it
        self.progress = Progress()
        self.held = False
        self.newest: tuple[int, int] | None = None

    def __contains__(self, number: int) -> bool:
        return number in self._histories

    @property
    def histories(self) -> Mapping[int, History]:
        """Of every open sequence, by number."""
        return self._histories

    def history(self, number: int) -> History:
        return self._histories[number]

    def begin(self, number: int, ids: Sequence[int] = ()) -> None:
        """`ids`: what the devices' caches hold of it already."""
        self._histories[number] = History(list(ids), len(ids), len(ids))

    def forget(self, number: int) -> None:
        """The sequence is closed: nothing of it waits or is under way any more."""
        self._histories.pop(number, None)
        self._drop_waiting(number)
        self.progress.forget(number)

    def withdraw(self, number: int) -> None:
        """What has not gone yet stays in the history, and goes when it is asked for again."""
        self._drop_waiting(number)
        self._histories[number].withdraw()

    def add(
        self, numbers: Iterable[int], all_rows: bool, drafts: Mapping[int, Sequence[int]] = NO_DRAFTS
    ) -> list[Feed]:
        """Of each sequence, all that was not asked for before: what goes at once. `drafts`: guesses at what follows a
        token that does. Raises RunError R105 beyond the context."""
        histories = [(number, self._histories[number]) for number in numbers]
        for _, history in histories:
            if len(history.ids) > self._context:
                raise RunError(
                    "R105", f"{len(history.ids)} tokens are more than the context of {self._context}"
                )
        going = []
        for number, history in histories:
            single = history.fed == history.queued == len(history.ids) - 1 - history.ahead
            if single and not all_rows and not self.held:
                going.append(self._token(number, history, drafts.get(number, ())))
            else:
                start, ids = history.queued, history.take(all_rows)
                self._waiting.extend(self._chunked(number, start, ids, _final_flags(all_rows)))
        return going + self.release() if self._waiting else going

    def rewind(self, way: Rewind, stages: Mapping[str, Sequence[int]]) -> None:
        """Feed a sequence again from `way.start` on. `stages`: for each device the numbers of its stages."""
        history = self._histories[way.sequence]
        history.forget_drafts()
        self._drop_waiting(way.sequence)
        firsts = {device: min(way.stages[i] for i in mine) for device, mine in stages.items()}
        self.progress.rewind(way.sequence, firsts)
        history.fed = way.start
        cuts = sorted({*way.stages, history.queued})
        for start, stop in zip([way.start, *cuts], cuts, strict=False):
            if start < stop:
                self._waiting.extend(self._again(way, history, start, stop))

    def _again(self, way: Rewind, history: History, start: int, stop: int) -> list[Feed]:
        """Positions start..stop-1 in chunks: a replay of what some stage has computed, or what comes after that."""
        ids = history.ids[start:stop]
        if stop <= way.reached:
            return self._chunked(way.sequence, start, ids, REPLAY, REPLAY)
        flags = 0 if history.awaited is None else _final_flags(history.all_rows)
        return self._chunked(way.sequence, start, ids, flags)

    def release(self) -> list[Feed]:
        """Waiting chunks that may go now."""
        going: list[Feed] = []
        while self._waiting and not self.held:
            rows = self._waiting[0].ids.shape[1]
            if rows > 1 and self.progress.under_way >= CHUNKS_A_DEVICE * self.progress.devices:
                break
            going.append(self._gone(self._waiting.popleft()))
        return going

    def done(self, device: str, steps: Collection[StepDone]) -> bool:
        """A device has done these steps; whether others may go now."""
        return self.progress.done(device, steps)

    def _token(self, number: int, history: History, drafts: Sequence[int]) -> Feed:
        """The one token that is not computed yet: decoding does nothing else, so it is quick."""
        position, flags = history.fed + history.ahead, LAST_CHUNK
        if history.ahead:
            flags |= AHEAD
        if drafts:
            array, flags = empty((1, 1 + len(drafts)), "int64"), flags | ALL_ROWS | DRAFTS
            array[0, 1:] = drafts
        else:
            array = self._row()
        array[0, 0] = history.ids[position]
        history.queued = history.fed = position + 1
        history.drafted, history.ahead = position + 1 + len(drafts), 0
        history.awaited = history.final = position
        history.all_rows = False
        self.newest = number, position
        self.progress.single(number, position, bool(drafts))
        return Feed(number, position, flags, array)

    def _row(self) -> Array:
        """For a token."""
        if not self._rows:
            lines = empty((ROWS, ALIGNMENT // 8), "int64")
            self._rows = [line.reshape(1, 1) for line in lines[:, :1]]
        return self._rows.pop()

    def _gone(self, feed: Feed) -> Feed:
        """Keep count of a feed that goes to the devices."""
        self.newest = feed.sequence, feed.position
        rows, history = feed.ids.shape[1], self._histories[feed.sequence]
        history.fed = feed.position + rows
        final = bool(feed.flags & (LAST_CHUNK | ALL_ROWS))
        if final:
            history.final = feed.position
        self.progress.gone(feed.sequence, feed.position, rows, final)
        return feed

    def _chunked(self, number: int, position: int, ids: list[int], last: int, others: int = 0) -> list[Feed]:
        """Feeds of a portion each; `last`: the flags of the last one, `others`: of those before it, which have
        ALL_ROWS when that has."""
        feeds, rows = [], self._portion(len(ids)) if len(ids) > 1 else 1
        others |= last & ALL_ROWS
        for start in range(0, len(ids), rows):
            part = ids[start : start + rows]
            array = empty((1, len(part)), "int64")
            array[0] = part
            flags = last if start + rows >= len(ids) else others
            feeds.append(Feed(number, position + start, flags, array))
        return feeds

    def _drop_waiting(self, number: int) -> None:
        self._waiting = deque(feed for feed in self._waiting if feed.sequence != number)


def _final_flags(all_rows: bool) -> int:
    return LAST_CHUNK | ALL_ROWS if all_rows else LAST_CHUNK
