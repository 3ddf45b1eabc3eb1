"""What blocks, stages and hops cost as arrays, for plans whose devices and links stay within a limit.

Indices: d, e devices (0 the head), k a cut before block k, 0 <= k <= blocks. A sum is what the objective holds besides
the slowest device or link. A cut is charged what it costs at least: a tensor that skips stages may cost more.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from llcompile.ir.plan import Flow
from llcompile.partition.problem import HEAD, INFINITY, Problem

Table = NDArray[np.float64]
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Tables:
    """The arrays of `problem` when its slowest device or link takes no more than `limit` seconds."""

    problem: Problem
    limit: float = INFINITY

    @cached_property
    def costs(self) -> Table:
        """[d, k]: what the blocks before k cost on d."""
        return prefix_sums(self.problem.block_cost)

    @cached_property
    def loads(self) -> Table:
        """[d, k]: seconds of the blocks before k that count towards the slowest device."""
        return prefix_sums(self.problem.load)

    @cached_property
    def starts(self) -> Numbers:
        """[d, k]: the earliest start of a stage of worker d that ends before k; k: there is none."""
        count = self.problem.blocks + 1
        starts = np.tile(np.arange(count), (len(self.problem.devices), 1))
        for d in self.problem.workers:
            starts[d, 1:] = self.problem.first_starts(d, self.limit)
        return starts

    @cached_property
    def returns(self) -> Numbers:
        """[a]: the earliest start of the head's last stage when its first ends before a; blocks: there is none."""
        returns = np.full(self.problem.blocks + 1, self.problem.blocks)
        returns[1:-1] = self.problem.first_returns(self.limit)[1:]
        return returns

    @cached_property
    def hops(self) -> Table:
        """[d, e, k]: the least that a cut before k from d to e costs; infinite when it keeps the link too busy.

        Tensors made before the last block of d may come from any device; those that the head itself may have made
        are left to `returning`.
        """
        problem, devices = self.problem, range(len(self.problem.devices))
        links = [[problem.link(d, e) for e in devices] for d in devices]
        latency = np.array([[problem.latency_cost(link) for link in row] for row in links])
        slowness = np.array([[1 / link.bytes_per_s for link in row] for row in links])
        near, far = _bytes_costs(problem)
        busy = np.zeros(problem.blocks + 1)
        busy[:-1] = [sum(map(self._busy_bytes, entering[0])) for entering in problem.entering]
        np.fill_diagonal(slowness, INFINITY)
        nearest = slowness.min(axis=0)
        nearest[HEAD] = 0.0
        np.fill_diagonal(slowness, 1.0)
        costs: Table = latency[:, :, None] + slowness[:, :, None] * near + nearest[None, :, None] * far
        costs[slowness[:, :, None] * busy > self.limit] = INFINITY
        costs[np.diag_indices(len(devices))] = INFINITY
        costs[:, :, [0, -1]] = INFINITY
        return costs

    def _busy_bytes(self, flow: Flow) -> int:
        return flow.decode_bytes if self.problem.weights.by_token else flow.prefill_bytes

    def returning(self, stops: Numbers) -> Table:
        """[i, k]: the least that older tensors cost when the head takes over again at k, having left at stops[i].

        Those made since come from a worker, those made before are there; so may be all that a group used which the head
        is in.
        """
        problem = self.problem
        costs = np.zeros((len(stops), problem.blocks + 1))
        if not (problem.long_flows and problem.workers) or (problem.group and problem.group.has_head):
            return costs
        nearest = max((problem.link(d, HEAD) for d in problem.workers), key=lambda link: link.bytes_per_s)
        for k in range(1, problem.blocks):
            for flow in problem.entering[k][1]:
                costs[stops <= flow.producer, k] += problem.bytes_cost([flow], nearest)
        return costs

    @cached_property
    def rest(self) -> Table:
        """[k]: what the head's last stage costs when it begins at k."""
        return np.asarray(self.costs[HEAD, -1] - self.costs[HEAD])

    @cached_property
    def head_stops(self) -> Numbers:
        """Ends of the head's first stage that leave room for the last block."""
        return np.nonzero(self.returns < self.problem.blocks)[0]

    @cached_property
    def alone(self) -> float:
        """What the whole model costs on the head; infinite when it may not have it."""
        return float(self.costs[HEAD, -1]) if self.problem.head_alone(self.limit) else INFINITY


def prefix_sums(rows: tuple[tuple[float, ...], ...]) -> Table:
    values = np.array(rows)
    return np.concatenate([np.zeros((len(values), 1)), np.cumsum(values, axis=1)], axis=1)


def _bytes_costs(problem: Problem) -> tuple[Table, Table]:
    """[k]: what the tensors used by block k cost on a link of one byte a second, made just before it and earlier."""
    w = problem.weights
    costs = np.zeros((2, problem.blocks + 1))
    for k, entering in enumerate(problem.entering):
        for kind, flows in enumerate(entering):
            costs[kind, k] = sum(w.token * flow.decode_bytes + w.fill * flow.prefill_bytes for flow in flows)
    return costs[0], costs[1]


def window_minimum(values: Table, starts: Numbers, stops: Numbers) -> Table:
    """[i, k] = least of values[i, starts[k]:stops[k]], infinite where the window is empty.

    A sparse table: minima over runs of 1, 2, 4 ... entries, two of which cover any window (Bender and
    Farach-Colton, LATIN 2000).
    """
    widths = stops - starts
    minima = np.full((values.shape[0], len(stops)), INFINITY)
    runs, size = values, 1
    while size <= widths.max(initial=0):
        here = np.nonzero((widths >= size) & (widths < 2 * size))[0]
        minima[:, here] = np.minimum(runs[:, starts[here]], runs[:, stops[here] - size])
        runs = np.minimum(runs[:, :-size], runs[:, size:]) if runs.shape[1] > size else runs[:, :0]
        size *= 2
    return minima
