"""Guesses at the tokens that come next, from those that were there: drafts for the model to confirm in one pass.

What follows is often what followed the same few tokens before, in the prompt or in the answer: names, phrases, the
shape of code. A pass that computes some guessed tokens beside the next one takes longer than one token, and gives as
many as were guessed right, and one more. So a draft is as long as makes the most tokens a second of what passes took
and of how often guesses were right lately; where none does, there is none. No second model is needed (prompt lookup:
Saxena 2023; its use in llama.cpp and transformers).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

LONGEST, SHORTEST = 4, 2  # tokens that have to be as before
MOST = 15  # of a draft: with the token before it, rows of one pass
FIRST_MOST = 4
GAIN = 1.02  # tokens a second that a draft must promise, beside none
PRIOR = {4: 0.8, 3: 0.65, 2: 0.5}  # how often a guess is right, before any was made
PRIOR_WEIGHT = 4.0
MEMORY = 0.95  # of what was seen before, at each draft
PROBE = 24  # refused drafts until one is made to see whether times have changed
ROW_SHARE = 0.15  # of a pass, that a further row takes, until it is measured
SMOOTH = 0.2


@dataclass
class Chances:
    """How often guesses after so many equal tokens were right, and wrong."""

    right: float
    wrong: float

    @property
    def rate(self) -> float:
        return self.right / (self.right + self.wrong)


@dataclass(eq=False)
class Drafter:
    """The guesses of one sequence. `clock`: seconds.

    `draft` before each token, `sent` when it goes to the devices, `answered` when its logits are there.
    """

    clock: Callable[[], float] = time.perf_counter
    _seen: int = 0
    _after: dict[tuple[int, ...], int] = field(default_factory=dict)  # where what follows these tokens is
    _guessed: dict[int, Chances] = field(
        default_factory=lambda: {
            n: Chances(rate * PRIOR_WEIGHT, (1 - rate) * PRIOR_WEIGHT) for n, rate in PRIOR.items()
        }
    )
    _most: int = FIRST_MOST
    _refused: int = 0
    _single_s: float | None = None
    _row_s: float | None = None
    _length: int = 0  # of the tokens that the newest draft followed
    _sent_at: float | None = None

    def draft(self, ids: Sequence[int], most: int) -> list[int]:
        """Guesses at what follows `ids`, `most` at the most; none where none pays."""
        self._take_in(ids)
        length, start = self._found(ids)
        if not length or most < 1 or self._single_s is None:
            return []
        count = min(self._best(self._guessed[length].rate), most)
        if not count:
            self._refused += 1
            if self._refused < PROBE:
                return []
            count = 1
        self._refused, self._length = 0, length
        return _following(ids, start, count)

    def begin(self) -> None:
        """A prompt comes next: nothing is told any more of a pass that was under way."""
        self._sent_at = None

    def sent(self) -> None:
        """A pass begins."""
        self._sent_at = self.clock()

    def answered(self, drafted: int, kept: int) -> None:
        """A pass with `drafted` guesses has ended, of which the first `kept` were right."""
        if self._sent_at is None:
            return  # it was a prompt's, or computed together with other requests
        seconds, self._sent_at = self.clock() - self._sent_at, None
        if not drafted:
            self._single_s = _smooth(self._single_s, seconds)
            return
        if self._single_s is not None:
            self._row_s = _smooth(self._row_s, max(seconds - self._single_s, 0.0) / drafted)
        guessed = self._guessed[self._length]
        guessed.right = guessed.right * MEMORY + kept
        guessed.wrong = guessed.wrong * MEMORY + (kept < drafted)
        if kept == drafted:
            self._most = min(max(self._most, 2 * drafted), MOST)
        else:
            self._most = max(kept + 1, FIRST_MOST)

    def _best(self, rate: float) -> int:
        """The length of a draft that gives the most tokens a second, 0 where none gives GAIN."""
        assert self._single_s is not None
        row_s = self._single_s * ROW_SHARE if self._row_s is None else self._row_s
        best, most, expected = 0, GAIN, 1.0
        for count in range(1, self._most + 1):
            expected += rate**count
            gain = expected * self._single_s / (self._single_s + count * row_s)
            if gain > most:
                best, most = count, gain
        return best

    def _found(self, ids: Sequence[int]) -> tuple[int, int]:
        """How many of the last tokens were there before, and where what followed them begins; 0 for too few."""
        for length in range(min(LONGEST, len(ids)), SHORTEST - 1, -1):
            start = self._after.get(tuple(ids[-length:]))
            if start is not None:
                return length, start
        return 0, 0

    def _take_in(self, ids: Sequence[int]) -> None:
        """Note what has come since; of the newest token it is not known what follows."""
        for stop in range(max(self._seen, SHORTEST), len(ids)):
            for length in range(SHORTEST, min(LONGEST, stop) + 1):
                self._after[tuple(ids[stop - length : stop])] = stop
        self._seen = max(self._seen, len(ids))


def _following(ids: Sequence[int], start: int, count: int) -> list[int]:
    """`count` tokens from `start` on; beyond the end what was guessed goes on as it began."""
    found = list(ids[start : start + count])
    period = len(ids) - start
    while len(found) < count:
        found.append(found[len(found) - period])
    return found


def _smooth(before: float | None, now: float) -> float:
    return now if before is None else before + SMOOTH * (now - before)
