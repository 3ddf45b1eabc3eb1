"""A change of stages that a session has made, as it is told to people and their scripts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from llrun.programs.rated import owners_of, spans
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


def in_words(move: Move, before: Sequence[StageRecord]) -> str:
    """One line on a move that was made while tokens went on: which blocks went where, why, and what it took."""
    then, now = _shared(before), _shared(move.stages)
    ways: dict[tuple[str, str], set[int]] = defaultdict(set)
    for block, (names, shares) in now.items():
        had, was = then.get(block, ("nowhere", ""))
        if had != names:
            ways[had, names].add(block)
        elif was != shares:
            ways[f"{names} by {was}", shares].add(block)
    went = ", ".join(f"{spans(blocks)} from {a} to {b}" for (a, b), blocks in sorted(ways.items()))
    copied = f", {move.moved_bytes / 1e6:.1f} MB of caches copied" if move.moved_bytes else ""
    return f"Blocks moved, {_why(move)}: {went}; {move.pause_s * 1000:.0f} ms without a token{copied}"


def _shared(stages: Sequence[StageRecord]) -> dict[int, tuple[str, str]]:
    """[block]: who runs it, and with which shares."""
    shares = {block: s.shares for s in stages for block in range(*s.blocks)}
    return {
        block: (names, ":".join(f"{100 * share:.0f}" for share in shares[block]))
        for block, names in owners_of(stages).items()
    }


def _why(move: Move) -> str:
    match move.reason:
        case MoveReason.HOOK:
            return "as the balancing function says"
        case MoveReason.JOINED:
            return f"as device {move.device} takes part"
        case _:
            return "as they are faster there"
