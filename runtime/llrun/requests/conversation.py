"""Requests: token ids in, tokens out as they come, and what they cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llrun.errors import RunError
from llrun.head.session import Session
from llrun.requests.sampling import Sampling, choose, generator
from llrun.schema import ModelInfo
from llrun.wire.protocol import Figures

DEFAULT_TOKENS = 128
# Takes a token as soon as it is final; False ends the request (a stop string).
Sink = Callable[[int], bool]


@dataclass(frozen=True)
class Result:
    """`tokens`: ids in order; an end-of-sequence token that was produced is the last of them. `ttft_s`:
    from the request to the first token; `tpot_s`: mean of the others, None when there is one token.
    `devices`: what the request cost each, memory being the most the device ever had."""

    tokens: tuple[int, ...]
    prompt_tokens: int
    ttft_s: float
    tpot_s: float | None
    devices: dict[str, Figures]


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
    room = model.context - used - prompt
    if room < (1 if wanted is None else wanted):
        before = f"{used} earlier tokens + " if used else ""
        raise RunError(
            "R105",
            f"{before}{prompt} prompt tokens + {1 if wanted is None else wanted} new ones are more than the"
            f" context of {model.context}: shorten the prompt, ask for fewer (-n), or build with a larger"
            " --context",
        )
    return min(DEFAULT_TOKENS, room) if wanted is None else wanted


class Conversation:
    """One sequence on a session, continued by each request: what was said stays in the caches."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._sequence = session.open()
        self._before = dict(session.figures)
        self._used = 0
        self._unfed: tuple[int, ...] = ()

    @property
    def used(self) -> int:
        """Tokens so far, those produced among them."""
        return self._used + len(self._unfed)

    def close(self) -> None:
        self._session.close_sequence(self._sequence)

    def ask(self, prompt: Sequence[int], wanted: int, sampling: Sampling, sink: Sink) -> Result:
        """Feed `prompt` and produce up to `wanted` tokens, fewer at an end of sequence or when `sink`
        says so."""
        random = generator(sampling)
        ends = frozenset(self._session.device.record.model.eos_token_ids)
        start = time.perf_counter()
        times: list[float] = []
        tokens: list[int] = []
        following = (*self._unfed, *prompt)
        while True:
            self._session.feed(self._sequence, following, self._used)
            self._used += len(following)
            token = choose(self._session.next_logits().rows[-1], sampling, random)
            times.append(time.perf_counter())
            tokens.append(token)
            following = self._unfed = (token,)
            if not sink(token) or token in ends or len(tokens) >= wanted:
                break
        return Result(
            tokens=tuple(tokens),
            prompt_tokens=len(prompt),
            ttft_s=times[0] - start,
            tpot_s=(times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None,
            devices=self._spent(),
        )

    def _spent(self) -> dict[str, Figures]:
        before, self._before = self._before, self._session.measure()
        return {name: _difference(now, before[name]) for name, now in sorted(self._before.items())}


def generate(
    session: Session, prompt: Sequence[int], wanted: int | None, sampling: Sampling, sink: Sink
) -> Result:
    """One request on a sequence of its own. Raises RunError for bad input, before anything runs."""
    model = session.device.record.model
    check_ids(prompt, model)
    count = tokens_allowed(len(prompt), wanted, model)
    conversation = Conversation(session)
    result = conversation.ask(prompt, count, sampling, sink)
    conversation.close()
    return result


def _difference(now: Figures, before: Figures) -> Figures:
    return Figures(
        now.compute_s - before.compute_s,
        now.wait_s - before.wait_s,
        now.sent_bytes - before.sent_bytes,
        now.peak_memory_bytes,
    )
