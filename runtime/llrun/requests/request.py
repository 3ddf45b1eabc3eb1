"""A request: token ids in, tokens out as they come, and what they cost."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llrun.errors import RunError
from llrun.head.moves import Move
from llrun.requests.constraint import Constraint
from llrun.requests.sampling import Penalties, Sampling, choose, generator, penalised
from llrun.schema import ModelInfo
from llrun.wire.messages import Figures, StepDone

DEFAULT_TOKENS = 128
Look = Callable[[NDArray[np.float32], int], object]
Ended = Callable[["Handle"], object]
# Takes a token as soon as it is final; False ends the request (a stop string).
Sink = Callable[[int], bool]


def keep_on(_: int) -> bool:
    """A sink that never ends a request."""
    return True


@dataclass(frozen=True)
class Request:
    """What is asked. `ids`: the prompt, of a conversation its next piece. `wanted`: tokens to produce, fewer
    at an end of sequence or when `sink` says so; None: as many as fit, up to a default; 0: only fill the
    caches, and of a conversation `ids` may be empty then.

    `produced`: the beginning of the answer, where an earlier run has produced it: `sink` has it already, and the random
    choices go on after those that it took. `wanted` counts it.
    `given`: tokens that are taken whatever the logits say, an end of sequence among them: for measuring.
    `constraint`: what the answer is held to, from its beginning: this request's own.
    `look`: is told the logits (vocabulary,), which are its only now, and the token chosen, before `sink` is.
    `ended`: is told once, when there is a result or an error. Both run on the driver's thread, and raise nothing.
    """

    ids: Sequence[int]
    wanted: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    sink: Sink = keep_on
    produced: Sequence[int] = ()
    given: Sequence[int] = ()
    penalties: Penalties = field(default_factory=Penalties)
    constraint: Constraint | None = None
    look: Look | None = None
    ended: Ended | None = None


class Guessed(NamedTuple):
    """`tokens`: guesses that were computed; `right`: those that were tokens."""

    tokens: int = 0
    right: int = 0


NONE_GUESSED = Guessed()


@dataclass(frozen=True)
class Result:
    """`tokens`: ids in order; an end-of-sequence token that was produced is the last of them. `token_s`: seconds from
    the request to each, 0 for those that an earlier run had produced. `ttft_s`: to the first that it had not, None
    when there is none; `tpot_s`: mean of those after that one, None when there are none. `devices`: what the request
    cost each, memory being the most the device ever had. `cancelled`: whether it was ended from outside. `moves`: the
    changes of stages while it ran. `guessed`: its tokens that were.

    A device's `compute_s` and `sent_bytes` are those of the request's steps, of steps computed together with
    others' an equal share. `wait_s`: the seconds that the device was idle before each of them, shared
    likewise, since the request began: so of a request that runs alone all its idle time.
    """

    tokens: tuple[int, ...]
    prompt_tokens: int
    ttft_s: float | None
    tpot_s: float | None
    devices: dict[str, Figures]
    cancelled: bool = False
    token_s: tuple[float, ...] = ()
    moves: tuple[Move, ...] = ()
    guessed: Guessed = NONE_GUESSED


class State(StrEnum):
    """`waiting`: for room or for the conversation's request before it. `running`: its steps are computed.
    `ending`: its tokens are all there, its figures are not. `done`: with a result or an error."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDING = "ending"
    DONE = "done"


@dataclass(slots=True)
class Spent:
    """What a request has cost a device so far."""

    compute_s: float = 0.0
    wait_s: float = 0.0
    sent_bytes: int = 0


class Handle:
    """A request that was submitted, as it goes. `times`: of each token that was not produced before, and
    `prompt_at`: of the prompt's logits, by time.perf_counter. `begun`: its prompt was taken, and is in its sequence's
    history. `reused`: how many of its tokens an earlier request's caches had. `error`: why the request ended without a
    result."""

    def __init__(self, request: Request, cancel: Callable[[Handle], None]) -> None:
        self.request = request
        self.state = State.WAITING
        self.tokens = list(request.produced)
        self.begun = False
        self.reused = 0
        self.allowed = 0
        self.ends: frozenset[int] = frozenset()
        self.submitted_at = time.perf_counter()
        self.prompt_at: float | None = None
        self.times: list[float] = []
        self.result: Result | None = None
        self.error: RunError | None = None
        self.cancelled = False
        self.guessed = NONE_GUESSED
        self._cancel = cancel
        self._given = iter(request.given)
        self._random = generator(request.sampling, len(request.produced))
        self._spent: dict[str, Spent] = {}
        self._began_at = self.submitted_at

    @property
    def done(self) -> bool:
        return self.state is State.DONE

    def cancel(self) -> None:
        """End the request as soon as may be, with the tokens that it has; its conversation can go on. From
        any thread, and from a signal's handler."""
        self._cancel(self)

    # --- for the scheduler ---

    def begin(self, allowed: int, ends: frozenset[int]) -> None:
        """Its prompt is fed now; `allowed` tokens are to be produced at most, up to one of `ends`."""
        self.state, self.begun = State.RUNNING, True
        self.allowed, self.ends = allowed, ends
        self._began_at = time.perf_counter()

    def choose(self, logits: NDArray[np.float32]) -> int:
        """The next token, from logits (vocabulary,). Raises RunError R502 when they are not numbers,
        and what the constraint raises."""
        constraint = self.request.constraint
        token = next(self._given, None)
        if token is None:
            weighed = penalised(logits, self.tokens, self.request.penalties)
            allowed = constraint.allowed() if constraint else None
            token = choose(weighed, self.request.sampling, self._random, allowed)
        if constraint:
            constraint.take(token)
        self.tokens.append(token)
        self.times.append(time.perf_counter())
        if self.request.look:
            self.request.look(logits, token)
        return token

    def charge(self, device: str, cost: StepDone) -> None:
        """Add what a step cost a device. How long it had been idle before the request began is no cost."""
        spent = self._spent.get(device)
        if spent is None:
            wait_s = min(cost.wait_s, time.perf_counter() - self._began_at)
            self._spent[device] = Spent(cost.compute_s, wait_s, cost.sent_bytes)
        else:
            spent.compute_s += cost.compute_s
            spent.wait_s += cost.wait_s
            spent.sent_bytes += cost.sent_bytes

    def finish(self, figures: dict[str, Figures], moves: Sequence[Move] = ()) -> None:
        """The result, with the devices' memory of `figures`, and those of the session's `moves` that it saw."""
        times, start = self.times, self.submitted_at
        self.result = Result(
            tokens=tuple(self.tokens),
            prompt_tokens=len(self.request.ids),
            ttft_s=times[0] - start if times else None,
            tpot_s=(times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None,
            devices={name: self._spent_by(name, now) for name, now in sorted(figures.items())},
            cancelled=self.cancelled,
            token_s=(*(0.0 for _ in self.request.produced), *(at - start for at in times)),
            moves=tuple(self._seen(move) for move in moves if move.at_s >= start),
            guessed=self.guessed,
        )
        self._end()

    def _seen(self, move: Move) -> Move:
        """A move with the number of this request's tokens that had come by then."""
        came = len(self.request.produced) + bisect_right(self.times, move.at_s)
        return replace(move, token=came)

    def fail(self, error: RunError) -> None:
        self.error = error
        self._end()

    def _end(self) -> None:
        self.state = State.DONE
        if self.request.ended:
            self.request.ended(self)

    def _spent_by(self, name: str, now: Figures) -> Figures:
        spent = self._spent.get(name, Spent())
        return Figures(spent.compute_s, spent.wait_s, spent.sent_bytes, now.peak_memory_bytes)


def check_ids(ids: Sequence[int], model: ModelInfo) -> None:
    """Raises RunError R103 for an empty prompt, R104 for an id outside the vocabulary."""
    if not ids:
        raise RunError("R103", "the prompt is empty: give at least one token")
    for index, token in enumerate(ids):
        if not 0 <= token < model.vocab_size:
            raise RunError(
                "R104",
                f"token {index} of the prompt is {token}, the vocabulary has {model.vocab_size} ids:"
                f" 0 to {model.vocab_size - 1}",
            )


def tokens_allowed(prompt: int, wanted: int | None, model: ModelInfo, used: int = 0) -> int:
    """How many tokens to produce after `prompt` new ones, with `used` in the cache already.

    What was asked for, or DEFAULT_TOKENS as far as they fit. Raises RunError R105 when they don't fit.
    """
    room = model.shapes.context - used - prompt
    if room < (1 if wanted is None else wanted):
        before = f"{used} earlier tokens + " if used else ""
        raise RunError(
            "R105",
            f"{before}{prompt} prompt tokens + {1 if wanted is None else wanted} new ones are more than the"
            f" context of {model.shapes.context}: shorten the prompt, ask for fewer (-n), or build with a larger"
            " --context",
        )
    return min(DEFAULT_TOKENS, room) if wanted is None else wanted
