"""How much of each block the devices of a group take: so that none is waited for, as far as memory allows.

Shares follow the devices' speeds; those for which memory is too small take what it holds, and the others take the rest
by their speeds again (water filling). What pieces cost in truth, in whole heads and tiles, says whether that is so, and
corrects it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from llcompile.ir.plan import BlockCost, PieceCosts
from llcompile.partition.evaluate import decode_seconds, prefill_seconds
from llcompile.partition.groups import Group
from llcompile.partition.problem import HEAD, INFINITY, Problem
from llrun.schema import AllReduceKind

STEPS = 1000  # shares are whole numbers of thousandths
ROUNDS = 6  # corrections
BETTER = 0.99  # of the slowest shard's seconds: what a correction is worth
Shares = tuple[float, ...]
Rates = NDArray[np.float64]


def open_blocks(problem: Problem) -> tuple[int, ...]:
    """The blocks that a group may have: neither the ends nor any that is pinned or kept."""
    return tuple(b for b, owner in enumerate(problem.owners) if owner is None)


def splits(problem: Problem, names: Sequence[str]) -> tuple[Shares, ...]:
    """Shares worth a look, of the devices `names` in that order: by speed; corrected by what shards take in truth; by
    speed as far as memory allows for all blocks; by memory alone where that is too little; and even ones.

    Shares of which one would be less than a thousandth are left out.
    """
    found = (_rounded(shares) for shares in _ways(problem, names))
    return tuple(dict.fromkeys(shares for shares in found if min(shares) > 0))


def _ways(problem: Problem, names: Sequence[str]) -> Iterator[Rates]:
    speeds, caps = _speeds(problem, names), _caps(problem, names)
    fast = speeds / speeds.sum()
    yield fast
    balanced = _balanced(problem, names, fast)
    if balanced is not None:
        yield balanced
    if caps.sum() < 1:
        yield caps / caps.sum() if caps.sum() > 0 else fast
    else:
        filled = _fitting(problem, names, speeds, caps)
        if filled is not None:
            yield filled
    yield np.full(len(names), 1 / len(names))


def _rounded(shares: Rates) -> Shares:
    """In thousandths that sum to 1: those that lose most by rounding down are rounded up."""
    exact = shares * STEPS
    whole = np.floor(exact + 1e-9).astype(int)
    for rank in sorted(range(len(exact)), key=lambda r: (whole[r] - exact[r], r))[: STEPS - int(whole.sum())]:
        whole[rank] += 1
    return tuple(int(each) / STEPS for each in whole)


def _numbers(problem: Problem, names: Sequence[str]) -> list[int]:
    known = {device.name: d for d, device in enumerate(problem.devices)}
    return [known[name] for name in names]


def _speeds(problem: Problem, names: Sequence[str]) -> Rates:
    """Blocks a second of the objective's mix of tokens and chunks."""
    blocks, w = open_blocks(problem), problem.weights
    seconds = [
        sum(problem.block_cost[d][b] + w.slowest * problem.load[d][b] for b in blocks)
        for d in _numbers(problem, names)
    ]
    speeds: Rates = 1 / np.maximum(np.array(seconds), 1e-300)
    return speeds


def _own(problem: Problem, number: int) -> list[BlockCost]:
    """The whole blocks that a device has in any case."""
    if number != HEAD:
        return []
    return [problem.costs[b] for b, owner in enumerate(problem.owners) if owner == HEAD]


def _caps(problem: Problem, names: Sequence[str]) -> Rates:
    """The shares of all blocks together that memories hold, at most; what tails and parts of sums take aside."""
    costs = [problem.costs[b] for b in open_blocks(problem)]
    stored = sum(cost.weights_bytes + cost.cache_bytes for cost in costs)
    active = max((cost.activation_bytes for cost in costs), default=0)
    caps = []
    for number in _numbers(problem, names):
        own = _own(problem, number)
        left = problem.free[number] - sum(cost.weights_bytes + cost.cache_bytes for cost in own)
        caps.append(max(0.0, left / max(1, stored + active)))
    return np.array(caps)


def _filled(speeds: Rates, caps: Rates) -> Rates | None:
    """Shares by speed, none over its cap; None where the caps are too small."""
    if caps.sum() < 1:
        return None
    full = np.zeros(len(speeds), dtype=bool)
    while True:
        left = 1 - caps[full].sum()
        shares: Rates = np.where(full, caps, left * speeds / max(speeds[~full].sum(), 1e-300))
        over = ~full & (shares > caps)
        if not over.any():
            return shares
        full |= over


def _fitting(problem: Problem, names: Sequence[str], speeds: Rates, caps: Rates) -> Rates | None:
    """Shares of all blocks that fit in truth, caps being lowered where pieces take more than their share."""
    for _ in range(ROUNDS):
        shares = _filled(speeds, caps)
        if shares is None:
            return None
        group = cut_with(problem, names, _rounded(shares))
        if group is None:
            return None
        over = excess(problem, group)
        if over.max() <= 1:
            return shares
        caps = np.where(over > 1, np.minimum(caps, shares) / over * BETTER, caps)
    return None


def cut_with(problem: Problem, names: Sequence[str], shares: Shares) -> Group | None:
    """A group that has all open blocks, whichever way it sums; None where they cannot be cut so."""
    blocks = open_blocks(problem)
    cut = problem.pieces(blocks, shares, len(names)) if problem.pieces and min(shares) > 0 else {}
    if not blocks or len(cut) < len(blocks):
        return None
    return Group(problem.real, tuple(names), shares, AllReduceKind.DIRECT, 0, cut)


def excess(problem: Problem, group: Group) -> Rates:
    """[rank]: what the pieces of all open blocks need of what a device has for them; over 1: they do not fit."""
    blocks = open_blocks(problem)
    own = {problem.real.head: _own(problem, HEAD)}
    needed = group.needed(blocks[0], blocks[-1] + 1, own)
    files = group.on_disk(blocks[0], blocks[-1] + 1, own)
    numbers = _numbers(problem, group.devices)
    free = np.array([max(problem.free[d], 1) for d in numbers])
    room = np.array([max(problem.disk[d], 1.0) if problem.disk[d] < INFINITY else INFINITY for d in numbers])
    over: Rates = np.maximum(needed / free, files / room)
    return over


def _balanced(problem: Problem, names: Sequence[str], shares: Rates) -> Rates | None:
    """Shares with which the slowest device takes less time than with `shares`; None where none were found."""
    best, found = INFINITY, None
    tried = shares
    for number in range(ROUNDS):
        group = cut_with(problem, names, _rounded(tried))
        if group is None:
            return found
        seconds = _shard_seconds(problem, group)
        if number and seconds.max() >= best * BETTER:
            return found
        best, found = float(seconds.max()), tried if number else None
        tried = tried / np.maximum(seconds, 1e-300)
        tried = tried / tried.sum()
    return found


def _shard_seconds(problem: Problem, group: Group) -> Rates:
    """[rank]: what its shards add to the objective."""
    w = problem.weights
    token, chunk = (w.token + w.slowest, w.fill) if w.by_token else (w.token, w.fill + w.slowest)
    known: Mapping[int, PieceCosts] = group.cut
    return np.array(
        [
            sum(
                token * decode_seconds(cut.shards[rank], device)
                + chunk * prefill_seconds(cut.shards[rank], device)
                for cut in known.values()
            )
            for rank, device in enumerate(group.members)
        ]
    )
