"""Which of many workers to search among: those of a good chain, found block by block, and the fastest of the others.

For each block and last device the best beginning alone is kept, with the workers that it used: each is one more step
of dynamic programming, without the sets that make it exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llrun.programs.question import HEAD, NONE, Bools, Ints, Question
from llrun.programs.tables import STAGE, finish

Run = tuple[int, int, int]  # device, start, stop


@dataclass
class _Beginnings:
    """[block, device]: the best that ends before the block with a stage of the device: picoseconds, the workers that it
    used, where that stage begins, and the device before."""

    cost: Ints
    used: Bools
    start: Ints
    before: Ints


def chain(question: Question, returns: int, stops: list[int]) -> tuple[int, list[Run]] | None:
    """A good plan whose first stage ends at one of `stops` and whose last begins at `returns` or later."""
    shape = question.blocks + 1, question.devices
    made = _Beginnings(
        np.full(shape, NONE),
        np.zeros((*shape, question.devices), bool),
        np.zeros(shape, np.int64),
        np.full(shape, HEAD),
    )
    made.cost[stops, HEAD] = question.sums[HEAD, stops]
    for block in range(1, question.blocks):
        if made.cost[block].min() < NONE:
            _go_on(question, made, block)
    totals = made.cost + finish(question, returns).T
    stop, last = divmod(int(totals.argmin()), question.devices)
    if totals[stop, last] >= NONE:
        return None
    return int(totals[stop, last]), _runs(question, made, stop, last)


def _go_on(question: Question, made: _Beginnings, block: int) -> None:
    """Every worker's stage that begins at the block, behind the best beginning that has not used the worker."""
    behind = made.cost[block][:, None] + question.hops[:, :, block]
    behind = np.where(made.used[block], NONE, behind)
    before = behind.argmin(axis=0)
    for worker in range(1, question.devices):
        last, spent = before[worker], behind[before[worker], worker]
        stops = np.arange(block + 1, question.last[worker, block] + 1)
        if spent >= NONE or not len(stops):
            continue
        costs = spent + question.sums[worker, stops] - question.sums[worker, block] + STAGE
        less = costs < made.cost[stops, worker]
        better = stops[less]
        made.cost[better, worker] = costs[less]
        made.start[better, worker], made.before[better, worker] = block, last
        made.used[better, worker] = made.used[block, last]
        made.used[better, worker, worker] = True


def _runs(question: Question, made: _Beginnings, block: int, device: int) -> list[Run]:
    runs = [(HEAD, block, question.blocks)]
    while device != HEAD:
        start = int(made.start[block, device])
        runs.append((device, start, block))
        block, device = start, int(made.before[block, device])
    return [(HEAD, 0, block), *reversed(runs)]


def fastest(question: Question) -> list[int]:
    """The workers, those first that need the least for a block and a hop to and from the head."""
    counts = question.held.sum(axis=1)
    compute = question.sums[:, -1] / np.maximum(counts, 1)
    away = question.hops[HEAD, :, 0] + question.hops[:, HEAD, 0]
    order = np.argsort(np.where(counts > 0, compute + away / np.maximum(counts, 1), np.inf), kind="stable")
    return [int(device) for device in order if device != HEAD]


def among(question: Question, workers: list[int]) -> Question:
    """The question with these workers alone."""
    return question.among([HEAD, *sorted(workers)])
