"""The default balancing function: moves when it pays, written against what every such function sees."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from llrun.head.view import View
from llrun.schema import StageRecord

NOISE = 0.15  # of the present TPOT: less is not worth a move
TIMES = 3  # so often in a row the same stages must be the best ones
MARGIN = 2.0  # what is gained by the end, over what the move costs
BURST, REFILL_S = 2, 60.0  # moves at once, and seconds until there may be another


@dataclass
class Policy:
    """Remembers what it has seen, so that it moves once and not to and fro. `clock`: seconds."""

    clock: Callable[[], float] = time.monotonic
    _seen: tuple[tuple[StageRecord, ...], int] = ((), 0)
    _allowed: float = float(BURST)
    _at: float | None = None
    _stages: tuple[StageRecord, ...] = field(default=())

    def __call__(self, view: View) -> tuple[StageRecord, ...] | None:
        """The stages to change to, or None."""
        self._refill()
        best = view.best()
        if best is None or best == view.stages or not self._pays(view, best):
            self._seen = ((), 0)
            return None
        times = self._seen[1] + 1 if self._seen[0] == best else 1
        self._seen = best, times
        if times < TIMES or self._allowed < 1:
            return None
        self._seen, self._allowed = ((), 0), self._allowed - 1
        return best

    def _pays(self, view: View, best: tuple[StageRecord, ...]) -> bool:
        now, then = view.predict(view.stages), view.predict(best)
        gain_s = now - then
        return gain_s > NOISE * now and gain_s * view.to_come > MARGIN * view.cost(best).seconds

    def _refill(self) -> None:
        now = self.clock()
        if self._at is not None:
            self._allowed = min(self._allowed + (now - self._at) / REFILL_S, float(BURST))
        self._at = now
