"""One time limit over all that planning does."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Clock:
    """Counts `limit_s` seconds from when it is made."""

    limit_s: float
    start: float = field(default_factory=time.perf_counter)

    @property
    def spent_s(self) -> float:
        return time.perf_counter() - self.start

    @property
    def left_s(self) -> float:
        return max(0.0, self.limit_s - self.spent_s)

    def beyond(self, share: float) -> bool:
        """Whether more than `share` of the time is over."""
        return self.spent_s > share * self.limit_s
