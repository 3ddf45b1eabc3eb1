"""How long a token takes where some blocks come from disk: for the planner and for who balances, by one reckoning.

A device reads the blocks that stream in the order in which they run, the first again after the last, one after the
other, and at most as far ahead as its ring holds; so it reads while it computes, and while others have their turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isinf

TOKENS, FIRST = 12, 4  # that are reckoned with; the first ones find all disks at rest


@dataclass(frozen=True)
class Turn:
    """A stage: `device` "" for a group, of which nothing is read ahead. `blocks`: seconds of computing and of loading
    of each, 0 where it is kept."""

    device: str
    blocks: Sequence[tuple[float, float]]


@dataclass
class _Disk:
    """`free_s`: when it can read the next block. `done_s`: when the blocks were done whose places those take that
    come next; of the first ones nothing has to be waited for."""

    free_s: float
    done_s: deque[float]


def token_seconds(turns: Sequence[Turn], rings: Mapping[str, int], travel_s: float) -> float:
    """Seconds of a token among others, one behind the other. `rings`: how many streamed blocks each device has in
    memory at once. `travel_s`: what messages take of a token, as if each turn waited for an equal part of it."""
    whole_s = sum(sum(computing_s for computing_s, _ in turn.blocks) for turn in turns) + travel_s
    if isinf(whole_s) or all(loading_s == 0 for turn in turns for _, loading_s in turn.blocks):
        return whole_s
    disks = {name: _Disk(0.0, deque([0.0] * ring)) for name, ring in rings.items()}
    now_s, ends = 0.0, list[float]()
    for _ in range(TOKENS):
        for turn in turns:
            now_s = _turn(turn, disks.get(turn.device), now_s + travel_s / len(turns))
        ends.append(now_s)
    return (ends[-1] - ends[FIRST - 1]) / (TOKENS - FIRST)


def _turn(turn: Turn, disk: _Disk | None, now_s: float) -> float:
    """When the turn that begins now has ended."""
    for computing_s, loading_s in turn.blocks:
        if disk is None or not loading_s or not disk.done_s:
            now_s += max(computing_s, loading_s)
            continue
        disk.free_s = max(disk.free_s, disk.done_s.popleft()) + loading_s
        now_s = max(now_s, disk.free_s) + computing_s
        disk.done_s.append(now_s)
    return now_s
