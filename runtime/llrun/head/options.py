"""What a session is asked for beside its devices: how it balances, and what it does when one is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llrun.errors import RunError
from llrun.schema import StageRecord

BUILT_IN = ("auto", "off")
WAIT_S = 2.0
LONGEST_WAIT_S = 86_400.0
Rebalance = Callable[..., Sequence[StageRecord] | None]


@dataclass(frozen=True)
class Balancing:
    """`rebalance`: what decides on the stages while tokens go on: `auto`, `off`, or a function of a View; a text that
    names a function is resolved by head.hook before it comes here. `wait_s`: how long a lost device that nothing can
    replace is waited for. `mirror`: keep the caches of each device on its spares up to date, so that a loss computes
    nothing again.

    Raises RunError R102 for a wait that is none.
    """

    rebalance: str | Rebalance = "auto"
    wait_s: float = WAIT_S
    mirror: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.wait_s <= LONGEST_WAIT_S:
            raise RunError("R102", f"wait is {self.wait_s}, it must be 0 to {LONGEST_WAIT_S:g} seconds")
