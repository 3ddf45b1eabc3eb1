"""Chooses the next token from logits: pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llrun.errors import INTERNAL, USAGE, RunError


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0: the likeliest token, the lowest id of equals. `top_k` 0 and `top_p` 1: no limit."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, good, rule in (
            ("temperature", 0 <= self.temperature < float("inf"), "0 or more"),
            ("top-k", self.top_k >= 0, "0 (all) or more"),
            ("top-p", 0 < self.top_p <= 1, "more than 0, at most 1"),
            ("seed", self.seed >= 0, "0 or more"),
        ):
            if not good:
                value = getattr(self, name.replace("-", "_"))
                raise RunError("R102", f"{name} is {value}, it must be {rule}", USAGE)


@dataclass(frozen=True)
class Penalties:
    """What is taken off the logit of a token that the answer has already: `presence` once, `frequency` for each time.
    Below 0 they make it likelier."""

    presence: float = 0.0
    frequency: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("presence", self.presence), ("frequency", self.frequency)):
            if not -2 <= value <= 2:
                raise RunError("R102", f"{name} penalty is {value}, it must be -2 to 2", USAGE)


def generator(sampling: Sampling, chosen: int = 0) -> np.random.Generator:
    """The source of a request's choices, after `chosen` tokens: each takes one number, at temperature 0 none."""
    bits = np.random.PCG64(sampling.seed)
    if sampling.temperature > 0:
        bits.advance(chosen)
    return np.random.Generator(bits)


def choose(
    logits: NDArray[np.float32],
    sampling: Sampling,
    random: np.random.Generator,
    allowed: NDArray[np.int64] | None = None,
) -> int:
    """The next token id from logits (vocabulary,), of `allowed` ids, ascending, as if there were no others.

    Raises RunError R502 when logits are not numbers.
    """
    best = int(np.argmax(logits))
    if not np.isfinite(logits[best]):
        raise RunError(
            "R502", f"logit {best} is {logits[best]}: the model's figures have overflowed", INTERNAL
        )
    if allowed is not None:
        return int(allowed[choose(logits[allowed], sampling, random)])
    if sampling.temperature == 0:
        return best
    ids, weights = distribution(logits, sampling)
    drawn = int(np.searchsorted(np.cumsum(weights), random.random(), side="right"))
    return int(ids[min(drawn, len(ids) - 1)])


def distribution(
    logits: NDArray[np.float32], sampling: Sampling
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The ids that may be chosen, likeliest first (lowest id of equals), and their probabilities.

    top-k first, then top-p on what is left: the smallest set whose probabilities reach p.
    """
    order = np.argsort(-logits, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    scaled = logits[order].astype(np.float64)
    scaled = (scaled - scaled[0]) / sampling.temperature
    weights = np.exp(scaled)
    weights /= weights.sum()
    if sampling.top_p < 1:
        count = int(np.searchsorted(np.cumsum(weights), sampling.top_p)) + 1
        order, weights = order[:count], weights[:count] / weights[:count].sum()
    return order, weights


def penalised(
    logits: NDArray[np.float32], produced: Sequence[int], penalties: Penalties
) -> NDArray[np.float32]:
    """Logits (vocabulary,) as `penalties` have them after the tokens `produced`; the same array where they change none.

    The formula is that of OpenAI's reference: logit - count * frequency - (count > 0) * presence.
    """
    if not produced or penalties == Penalties():
        return logits
    ids, counts = np.unique(np.asarray(produced, np.int64), return_counts=True)
    changed = logits.copy()
    changed[ids] -= (counts * penalties.frequency + penalties.presence).astype(np.float32)
    return changed


def log_probabilities(
    logits: NDArray[np.float32], token: int, count: int
) -> tuple[float, list[tuple[int, float]]]:
    """The natural logarithm of `token`'s probability by logits (vocabulary,), and those of the `count` likeliest ids,
    likeliest first (lowest id of equals): the model's own, whatever the sampling."""
    wide = logits.astype(np.float64)
    top = wide.max()
    wide -= top + np.log(np.exp(wide - top).sum())
    likeliest = np.argsort(-logits, kind="stable")[:count]
    return float(wide[token]), [(int(each), float(wide[each])) for each in likeliest]
