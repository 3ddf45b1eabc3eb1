"""The answers of one request as they come: from the session's thread to the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llrun.errors import RunError
from llrun.faces.server.asked import Asked
from llrun.faces.server.driver import Driver
from llrun.faces.server.faults import of_run_error
from llrun.faces.server.preparing import Prepared
from llrun.requests.constraint import Constraint
from llrun.requests.request import Handle, Request
from llrun.requests.sampling import log_probabilities
from llrun.requests.stream import UNFINISHED, Stream
from llrun.requests.tokenizer import Tokenizer
from llrun.requests.tool_calls import Call, CallReader
from llrun.requests.tool_forms import codec_of
from llrun.schema import ModelInfo


@dataclass(frozen=True)
class Likely:
    """A token as it reads alone, and its log-probability."""

    text: str
    logprob: float

    @property
    def bytes(self) -> list[int] | None:
        """Its UTF-8 bytes, None where it is a part of a character."""
        return None if UNFINISHED in self.text else list(self.text.encode())


@dataclass(frozen=True)
class TokenChances:
    """A token that was chosen, and the likeliest in its place, likeliest first."""

    chosen: Likely
    likeliest: tuple[Likely, ...]


@dataclass(frozen=True)
class Piece:
    """Text of the answer number `index`, which may be empty, and the tokens that came with it."""

    index: int
    text: str
    chances: tuple[TokenChances, ...] = ()


@dataclass(frozen=True)
class Called:
    """The call number `number` of the answer number `index`."""

    index: int
    number: int
    call: Call


@dataclass(frozen=True)
class Ended:
    """The answer number `index` is there. `reason`: stop, length or tool_calls. `reused`: tokens of its prompt that an
    earlier answer's caches had. `error`: why it is not whole."""

    index: int
    reason: str
    tokens: int
    reused: int = 0
    error: RunError | None = None


Event = Piece | Called | Ended


class Answers:
    """All answers of one request: to each of the prompts as many as `asked.choices`.

    Used from the event loop. `begin` raises RunError or ApiError for what is refused at once; then nothing of it goes
    on. `cancel` gives back what the answers hold of the devices: by the next token of each.
    """

    def __init__(
        self,
        driver: Driver,
        tokenizer: Tokenizer,
        model: ModelInfo,
        prepared: Prepared,
        asked: Asked,
    ) -> None:
        self._driver = driver
        self._tokenizer = tokenizer
        self._model = model
        self._prepared = prepared
        self._asked = asked
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._handles: list[Handle] = []
        self.prompt_tokens = sum(map(len, prepared.ids))
        self.tokens = self.reused = 0

    def begin(self) -> None:
        tell = _teller(asyncio.get_running_loop(), self._events)
        try:
            for number, ids in enumerate(self._prepared.ids):
                for choice in range(self._asked.choices):
                    index = number * self._asked.choices + choice
                    one = _Choice(index, self._tokenizer, self._model, ids, self._asked, self._prepared, tell)
                    constraints = self._prepared.constraints
                    constraint = constraints[index] if constraints else None
                    self._handles.append(self._driver.submit(one.request(ids, choice, constraint)))
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """End them all, and whoever waits for their events."""
        for handle in self._handles:
            if not handle.done:
                handle.cancel()
        self._events.put_nowait(None)

    async def events(self) -> AsyncIterator[Event]:
        """Up to the end of every answer, or to `cancel`. Raises ApiError for an answer that fails."""
        left = len(self._handles)
        while left:
            event = await self._events.get()
            if event is None:
                return
            if isinstance(event, Ended):
                if event.error:
                    raise of_run_error(event.error)
                left -= 1
                self.tokens += event.tokens
                self.reused += event.reused
            yield event


def _teller(loop: asyncio.AbstractEventLoop, queue: asyncio.Queue[Event | None]) -> Callable[[Event], None]:
    def tell(event: Event) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            loop.call_soon_threadsafe(queue.put_nowait, event)

    return tell


class _Choice:
    """One answer, on the session's thread: its text, and where it ends."""

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        model: ModelInfo,
        ids: Sequence[int],
        asked: Asked,
        prepared: Prepared,
        tell: Callable[[Event], None],
    ) -> None:
        self._index = index
        self._tokenizer = tokenizer
        self._ends = prepared.ends.union(model.eos_token_ids)
        self._room = model.shapes.context - len(ids)
        self._asked = asked
        self._tell = tell
        self._stream = Stream(codec_of(tokenizer, prepared.form), asked.stops, ids)
        self._reader = CallReader(prepared.form) if prepared.form else None
        self._chances: tuple[TokenChances, ...] = ()
        self._called = 0

    def request(self, ids: Sequence[int], choice: int, constraint: Constraint | None) -> Request:
        asked = self._asked
        return Request(
            ids,
            max(self._room, 1) if asked.wanted is None else asked.wanted,
            asked.sampling_of(choice),
            self._take,
            penalties=asked.penalties,
            constraint=constraint,
            look=None if asked.likeliest is None else self._look,
            ended=self._ended,
        )

    def _look(self, logits: NDArray[np.float32], token: int) -> None:
        own, likeliest = log_probabilities(logits, token, self._asked.likeliest or 0)
        others = tuple(Likely(self._tokenizer.decode([each]), value) for each, value in likeliest)
        self._chances = (TokenChances(Likely(self._tokenizer.decode([token]), own), others),)

    def _take(self, token: int) -> bool:
        if token in self._ends:
            return False
        text = self._stream.push(token)
        if text or self._chances:
            self._tell_all(self._reader.push(text) if self._reader else [text], self._chances)
        return not self._stream.stopped

    def _tell_all(self, parts: Sequence[str | Call], chances: tuple[TokenChances, ...] = ()) -> None:
        """Text, of which the first piece brings the token's probabilities, and calls."""
        if chances and not (parts and isinstance(parts[0], str)):
            parts = ["", *parts]
        for part in parts:
            if isinstance(part, Call):
                self._tell(Called(self._index, self._called, part))
                self._called += 1
            else:
                self._tell(Piece(self._index, part, chances))
                chances = ()

    def _ended(self, handle: Handle) -> None:
        stopped = self._stream.stopped or bool(handle.tokens and handle.tokens[-1] in self._ends)
        rest = self._stream.finish()
        reader = self._reader
        self._tell_all(
            [*reader.push(rest), *reader.finish(not stopped)] if reader else [rest] if rest else []
        )
        reason = "length" if not stopped else "tool_calls" if self._called else "stop"
        self._tell(Ended(self._index, reason, len(handle.tokens), handle.reused, handle.error))
