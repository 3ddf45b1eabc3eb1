"""How little the rest of a plan can cost: for every set of workers used, the last of them, and the block that is next.

Exact for what a hop between neighbours costs, and nothing for tensors that skip stages: a lower bound.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llrun.programs.question import HEAD, NONE, Ints, Question

STAGE = (
    1  # picoseconds that a worker's stage costs beside its work, so that of equal plans one has fewer devices
)


def table(question: Question, returns: int) -> Ints:
    """[set, device, block]: picoseconds from the end of the device's stage before the block to the end of the model.

    `set`: worker d is bit d - 1; those that are used, the device among them. `returns`: the earliest start of the
    head's last stage. NONE and more: it cannot be ended.
    """
    workers, count = question.devices - 1, question.blocks + 1
    behind = np.full((1 << workers, question.devices, count), NONE)  # after the device's stage has ended
    inside = behind.copy()  # where it begins
    ending = finish(question, returns)
    for sets in _by_size(workers):
        used, last = _pairs(sets, workers)
        rest = ending[last]
        for worker in range(1, question.devices):
            free = np.flatnonzero((used >> (worker - 1)) & 1 == 0)
            following = inside[used[free] | 1 << (worker - 1), worker]
            rest[free] = np.minimum(rest[free], question.hops[last[free], worker] + following)
        behind[used, last] = np.minimum(rest, NONE)
        inside[used, last] = _least_ahead(question, behind[used, last], last)
    return behind


def finish(question: Question, returns: int) -> Ints:
    """[device, block]: picoseconds of the head's last stage, if it begins at the block, and of the hop there."""
    ending = np.full((question.devices, question.blocks + 1), NONE)
    own = question.sums[HEAD, -1] - question.sums[HEAD]
    may = slice(returns, question.blocks)
    ending[1:, may] = question.hops[1:, HEAD, may] + own[may]
    return ending


def _by_size(workers: int) -> Sequence[list[int]]:
    """The sets of workers, full ones first."""
    sizes: list[list[int]] = [[] for _ in range(workers + 1)]
    for used in range(1 << workers):
        sizes[workers - used.bit_count()].append(used)
    return sizes


def _pairs(sets: Sequence[int], workers: int) -> tuple[Ints, Ints]:
    """Each set with each device that may be the last of it: the head where no worker is used."""
    pairs = [(s, d) for s in sets for d in range(workers + 1) if (s >> (d - 1) & 1 if d else s == 0)]
    used, last = np.array(pairs, np.int64).T
    return used, last


def _least_ahead(question: Question, behind: Ints, devices: Ints) -> Ints:
    """[pair, start]: a stage of the pair's device from there, with the stop that makes it and the rest the least."""
    sums, stops = question.sums[devices], question.last[devices]
    least = _doubled(behind + sums)
    starts = np.arange(behind.shape[1])
    length = stops - starts
    step = np.frexp(np.maximum(length, 1))[1] - 1  # the greatest power of two that the window holds
    rows = np.arange(len(devices))[:, None]
    first = np.minimum(starts + 1, behind.shape[1] - 1)
    window = np.minimum(
        least[step, rows, np.broadcast_to(first, stops.shape)],
        least[step, rows, np.maximum(stops - (1 << step) + 1, 0)],
    )
    return np.where(length > 0, np.minimum(window - sums + STAGE, NONE), NONE)


def _doubled(values: Ints) -> Ints:
    """[k, row, i]: the least of the 2^k values from i on."""
    levels, width = [values], 1
    while 2 * width <= values.shape[1]:
        wider = levels[-1].copy()
        wider[:, :-width] = np.minimum(wider[:, :-width], levels[-1][:, width:])
        levels.append(wider)
        width *= 2
    return np.stack(levels)
