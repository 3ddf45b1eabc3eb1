"""A change of stages that a session has made, as it is told to people and their scripts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from llrun.schema import StageRecord


class MoveReason(StrEnum):
    """`slow`: the balancer expects to gain. `hook`: the user's function asked for it. `lost`: a device was lost.
    `joined`: one came, or came back."""

    SLOW = "slow"
    LOST = "lost"
    JOINED = "joined"
    HOOK = "hook"


@dataclass(frozen=True)
class Move:
    """A change of stages.

    `token`: tokens that had come when the devices went on, of all requests of the session; in a request's result: of
    that request. `epoch`: the one that began then. `device`: whom `reason` is about, None when about no single one.
    `stages`: the new ones. `pause_s`: from the last thing that was fed before the change to the first one after it.
    `moved_bytes`: of caches, over the links. `computed_again`: tokens that went through blocks once more, of all
    sequences. `at_s`: when the devices went on, by time.perf_counter.
    """

    token: int
    epoch: int
    reason: MoveReason
    device: str | None
    stages: tuple[StageRecord, ...]
    pause_s: float
    moved_bytes: int
    computed_again: int
    at_s: float
