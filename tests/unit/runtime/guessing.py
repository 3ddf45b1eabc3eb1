"""Guesses at tokens that a test decides on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy_model as synthetic

Guess = Callable[
    [Sequence[int], int], list[int]
]  # of the tokens so far, and of how many guesses there may be


class Oracle:
    """Guesses what comes, now and then wrong."""

    def __init__(self, expected: Sequence[int], start: int, wrong: float, seed: int = 0) -> None:
        self.expected, self.start, self.wrong = list(expected), start, wrong
        self.random = np.random.default_rng(seed)
        self.drafted: list[int] = []

    def __call__(self, ids: Sequence[int], most: int) -> list[int]:
        done = len(ids) - self.start
        count = int(self.random.integers(0, 8))
        drafts = self.expected[done : done + min(count, most)]
        for index in range(len(drafts)):
            if self.random.random() < self.wrong:
                drafts[index] = (drafts[index] + 1) % synthetic.VOCABULARY
        self.drafted.append(len(drafts))
        return drafts
