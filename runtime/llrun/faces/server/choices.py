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
from llrun.requests.constraint import Constraint
from llrun.requests.request import Handle, Request
from llrun.requests.sampling import log_probabilities
from llrun.requests.stream import UNFINISHED, Stream
from llrun.requests.tokenizer import Tokenizer
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
class Ended:
    """The answer number `index` is there. `reason`: stop or length. `error`: why it is not whole."""

    index: int
    reason: str
    tokens: int
    error: RunError | None = None


Event = Piece | Ended


class Answers:
    """All answers of one request. `prompts`: token ids, each of which is answered `asked.choices` times. `ends`: tokens
    that end an answer besides the model's. `constraints`: what each answer is held to, in their order; empty where they
    are free.

    Used from the event loop. `begin` raises RunError or ApiError for what is refused at once; then nothing of it goes
    on. `cancel` gives back what the answers hold of the devices: by the next token of each.
    """

    def __init__(
        self,
        driver: Driver,
        tokenizer: Tokenizer,
        model: ModelInfo,
        prompts: Sequence[Sequence[int]],
        asked: Asked,
        ends: frozenset[int] = frozenset(),
        constraints: Sequence[Constraint] = (),
    ) -> None:
        self._driver = driver
        self._constraints = constraints
        self._ends = ends
        self._tokenizer = tokenizer
        self._model = model
        self._prompts = prompts
        self._asked = asked
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._handles: list[Handle] = []
        self.prompt_tokens = sum(map(len, prompts))
        self.tokens = 0

    def begin(self) -> None:
        tell = _teller(asyncio.get_running_loop(), self._events)
        try:
            for number, ids in enumerate(self._prompts):
                for choice in range(self._asked.choices):
                    index = number * self._asked.choices + choice
                    one = _Choice(index, self._tokenizer, self._model, ids, self._asked, self._ends, tell)
                    constraint = self._constraints[index] if self._constraints else None
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
        ends: frozenset[int],
        tell: Callable[[Event], None],
    ) -> None:
        self._index = index
        self._tokenizer = tokenizer
        self._ends = ends.union(model.eos_token_ids)
        self._room = model.shapes.context - len(ids)
        self._asked = asked
        self._tell = tell
        self._stream = Stream(tokenizer, asked.stops, ids)
        self._chances: tuple[TokenChances, ...] = ()

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
            self._tell(Piece(self._index, text, self._chances))
        return not self._stream.stopped

    def _ended(self, handle: Handle) -> None:
        stopped = self._stream.stopped or bool(handle.tokens and handle.tokens[-1] in self._ends)
        rest = self._stream.finish()
        if rest:
            self._tell(Piece(self._index, rest))
        reason = "stop" if stopped else "length"
        self._tell(Ended(self._index, reason, len(handle.tokens), handle.error))
