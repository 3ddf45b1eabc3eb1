"""A sequence as the scheduler has it: whose turn it is, and what is guessed of its next tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llrun.head.history import History
from llrun.requests.request import Guessed, Handle
from llrun.requests.speculate import Drafter
from llrun.schema import MAX_BATCH, Shapes


@dataclass(eq=False)
class Line:
    """A sequence, for one request or (`kept`) for those of a conversation, one after another.

    `number`: None until there is room for it. `claims`: the newest requests, each with the position that it began at.
    `drafts`: the guesses that are computed with its newest token; `right`: how many of those before it were right.
    `anew`: nothing that an earlier request has left is used for it.
    """

    kept: bool
    number: int | None = None
    opened: bool = False
    closed: bool = False
    current: Handle | None = None
    history: History = field(default_factory=History)
    claims: list[tuple[int, Handle]] = field(default_factory=list)
    drafter: Drafter = field(default_factory=Drafter)
    drafts: Sequence[int] = ()
    right: int = 0
    anew: bool = False

    def payer(self, position: int) -> Handle:
        """Whose step it is that began at `position`."""
        start, newest = self.claims[-1]
        return newest if start <= position else self.claims[0][1]

    def begin(self, handle: Handle, history: History) -> None:
        """It is a request's turn."""
        self.current, self.history, self.drafts = handle, history, ()
        self.drafter.begin()

    def advance(self, handle: Handle, rows: NDArray[np.float32]) -> bool:
        """Take the next token of logits (rows, vocabulary), and those guessed right; whether more are to follow.

        Raises what choosing one raises, and telling it."""
        drafts, self.drafts = self.drafts if len(rows) > 1 else (), ()
        right = 0
        while go_on := self._take(handle, rows[right - len(drafts) - 1]):
            if right == len(drafts) or handle.tokens[-1] != drafts[right]:
                break
            right += 1
        self.history.keep(right)
        self.right = right
        self.drafter.answered(len(drafts), right)
        handle.guessed = Guessed(handle.guessed.tokens + len(drafts), handle.guessed.right + right)
        return go_on

    def _take(self, handle: Handle, row: NDArray[np.float32]) -> bool:
        token = handle.choose(row)
        self.history.ids.append(token)
        go_on = handle.request.sink(token)
        return go_on and len(handle.tokens) < handle.allowed and token not in handle.ends

    def guess(self, shapes: Shapes) -> Sequence[int]:
        """Guesses at the tokens behind the next one, which goes to the devices now; none where that does not pay."""
        handle, self.drafts = self.current, ()
        if handle is not None and not handle.request.given:
            left = handle.allowed - len(handle.tokens), shapes.context - len(self.history)
            self.drafts = self.drafter.draft(self.history.ids, min(*left, shapes.chunk, MAX_BATCH) - 1)
            self.drafter.sent()
        return self.drafts
