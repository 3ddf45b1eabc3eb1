"""Exact plans for equal links and alternating blocks, by dynamic programming over devices instead of subsets of them.

Where a cut costs the same between any two devices and the blocks alternate between two kinds (attention and MLP, say),
a stage is described by its length and by which kind it has one more of: its surplus, -1, 0 or 1. Any set of stages
whose lengths and surpluses add up can be put into an order, as those with a surplus of 1 and of -1 take turns. So a
device picks a length and a surplus, as an item of a knapsack problem with choices (Kellerer, Pferschy and Pisinger,
"Knapsack Problems", 2004, chapter 11). The last block but one may differ from its kind, and take less to reach, as it
may need the last row only: at most one stage, the tail, ends with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from llcompile.ir.plan import Stage
from llcompile.partition.problem import HEAD, INFINITY, Problem
from llcompile.partition.search import Found, found_plan
from llcompile.partition.tables import Numbers, Table, Tables

SPREAD = 16  # surpluses -SPREAD..SPREAD are told apart at first; more where that turns out to be too few


@dataclass(frozen=True)
class _Item:
    """A stage of `device`: its length, its surplus, whether it is the tail."""

    device: int
    length: int
    surplus: int
    tail: bool


def alternates(problem: Problem) -> bool:
    """Whether the knapsack describes `problem`: links alike, no pins, blocks between the ends of two kinds in turn."""
    inner = [replace(cost, block=0) for cost in problem.costs[1:-2]]
    sizes = [[(flow.decode_bytes, flow.prefill_bytes) for flow in flows] for flows in problem.hop_flows[1:-2]]
    return (
        problem.uniform
        and not problem.options.pins
        and problem.blocks > 4
        and all(cost == inner[b % 2] for b, cost in enumerate(inner))
        and all(size == sizes[0] for size in sizes)
    )


class Knapsack:
    """All plans under one limit: what `search` asks of a sweep."""

    exact = True

    def __init__(self, problem: Problem, limit: float) -> None:
        self.problem = problem
        self.tables = Tables(problem, limit)
        self.alone = self.tables.alone
        self._sum, self._items, self._ends = self._solved()

    def least(self) -> float:
        """The least sum of any plan under the limit; infinite when there is none."""
        return min(self.alone, self._sum)

    def cheapest(self) -> Found:
        """The plan that costs `least`."""
        if self.alone <= self._sum:
            name = self.problem.devices[HEAD].name
            return found_plan(self.problem, [Stage.on(name, 0, self.problem.blocks)])
        return found_plan(self.problem, self._stages())

    def plans(self) -> Iterator[tuple[Found, tuple[int, ...]]]:
        """The cheapest plan with its workers, where there is one."""
        if self.least() < INFINITY:
            plan = self.cheapest()
            used = {stage.lead for stage in plan.stages}
            yield plan, tuple(d for d in self.problem.workers if self.problem.devices[d].name in used)

    def _solved(self) -> tuple[float, list[_Item], tuple[int, int]]:
        """The least sum of plans with workers, their stages, and where the head leaves and returns."""
        spread = max(SPREAD, len(self.problem.workers) // 2)
        while True:
            layers = _Layers(self.tables, min(spread, len(self.problem.workers)))
            total, items, ends = layers.best()
            wanted = _surplus(*ends)
            if total == INFINITY or sum(item.surplus for item in items) == wanted:
                return total, items, ends
            spread *= 2

    def _stages(self) -> list[Stage]:
        """The items in an order that fits: even ones first, odd ones in turns, the tail last."""
        start, back = self._ends
        left = sorted(self._items, key=lambda item: (item.tail, item.surplus != 0, item.device))
        runs = [(HEAD, 0, start)]
        while left:
            parity = 1 if start % 2 else -1  # what a stage that begins here can have one more of
            item = next(
                item for item in left if item.surplus in (0, parity) and (not item.tail or len(left) == 1)
            )
            left.remove(item)
            runs.append((item.device, start, start + item.length))
            start += item.length
        runs.append((HEAD, back, self.problem.blocks))
        names = [device.name for device in self.problem.devices]
        return [Stage.on(names[d], *edges) for d, *edges in runs]


def _surplus(start: int, stop: int) -> int:
    """Blocks of odd number less those of even number."""
    return 0 if (stop - start) % 2 == 0 else (1 if start % 2 else -1)


class _Layers:
    """least[tail, surplus, length]: the least cost of stages on the workers so far, hops to them included.

    Surpluses beyond `spread` are taken for `spread`, which they may keep or leave: costs are then bounds.
    """

    def __init__(self, tables: Tables, spread: int) -> None:
        self.tables, self.problem, self.spread = tables, tables.problem, spread
        inner = self.problem.blocks - 2
        least = np.full((2, 2 * spread + 1, inner + 1), INFINITY)
        least[0, spread, 0] = 0.0
        self.least = least
        self.picks: list[Numbers] = []
        for d in self.problem.workers:
            self._add(d)

    @cached_property
    def hops(self) -> Table:
        """[k]: what a cut before block k costs; alike but before the last two."""
        return np.asarray(self.tables.hops[HEAD, 1])

    def _add(self, device: int) -> None:
        """Let `device` have a stage of any length that fits, or none."""
        old = self.least
        forced = self.problem.options.use_all
        new = np.full_like(old, INFINITY) if forced else old.copy()
        pick = np.zeros((*old.shape, 4), dtype=np.int64)  # length, surplus, tail before, row before
        for surplus in (-1, 0, 1):
            body, tail = self._costs(device, surplus)
            for source, target, costs in ((0, 0, body), (1, 1, body), (0, 1, tail)):
                if np.isfinite(costs).any():
                    for rows, before in self._shifts(surplus):
                        self._offer(
                            old[source], new[target], pick[target], rows, before, costs, (surplus, source)
                        )
        self.least = new
        self.picks.append(pick)

    def _shifts(self, surplus: int) -> Iterator[tuple[slice, slice]]:
        """Rows of the target, and the rows they come from; at the edge a surplus may stay what it is."""
        size = 2 * self.spread + 1
        yield slice(max(0, surplus), size + min(0, surplus)), slice(max(0, -surplus), size + min(0, -surplus))
        if surplus:
            for edge in (0, size - 1):
                yield slice(edge, edge + 1), slice(edge, edge + 1)

    def _offer(
        self,
        source: Table,
        target: Table,
        pick: Numbers,
        rows: slice,
        before: slice,
        costs: Table,
        labels: tuple[int, int],
    ) -> None:
        """target[row, length] = min(itself, source[row before, length - l] + costs[l]), remembering where from."""
        lengths = np.nonzero(np.isfinite(costs))[0]
        width, longest = target.shape[1], int(lengths[-1])
        came = source[before]
        padded = np.concatenate([np.full((len(came), longest), INFINITY), came], axis=1)
        # windows[row, length, l] = source[row, length - longest + l]
        windows = np.lib.stride_tricks.sliding_window_view(padded, longest + 1, axis=1)[:, :width]
        sums = windows[:, :, longest - lengths] + costs[lengths]
        which = sums.argmin(axis=2)
        best = np.take_along_axis(sums, which[..., None], axis=2)[..., 0]
        better = best < target[rows]
        target[rows][better] = best[better]
        numbers = np.broadcast_to(np.arange(before.start, before.stop)[:, None], better.shape)
        same = [np.full(int(better.sum()), label) for label in labels]
        pick[rows][better] = np.stack([lengths[which[better]], *same, numbers[better]], axis=1)

    def _costs(self, device: int, surplus: int) -> tuple[Table, Table]:
        """[length]: what a stage of that surplus costs with the hop to it: inside, and as the tail."""
        blocks, starts, costs = self.problem.blocks, self.tables.starts[device], self.tables.costs[device]
        hop = float(self.hops[1])
        body, tail = np.full((2, blocks - 1), INFINITY)
        lengths = np.arange(1, blocks - 1)
        lengths = lengths[lengths % 2 == abs(surplus)]
        for first in (1, 2):
            if surplus in (0, 1 if first % 2 else -1):
                ends = first + lengths
                fits = lengths[(ends <= blocks - 2) & (starts[np.minimum(ends, blocks)] <= first)]
                body[fits] = np.minimum(body[fits], costs[first + fits] - costs[first] + hop)
        begins = blocks - 1 - lengths
        kind = np.where(lengths % 2 == 0, 0, np.where(begins % 2 == 1, 1, -1))
        fits = lengths[(begins >= 1) & (kind == surplus) & (starts[blocks - 1] <= begins)]
        tail[fits] = costs[blocks - 1] - costs[blocks - 1 - fits] + self.hops[blocks - 1 - fits]
        return body, tail

    def best(self) -> tuple[float, list[_Item], tuple[int, int]]:
        """The least sum over where the head leaves and returns."""
        blocks, tables = self.problem.blocks, self.tables
        cheapest: tuple[float, int, int] = (INFINITY, 1, 1)
        for start in map(int, tables.head_stops):
            backs = np.arange(max(int(tables.returns[start]), start + 1), blocks)
            rows = np.array([_surplus(start, int(back)) for back in backs], dtype=np.int64) + self.spread
            tails = (backs == blocks - 1).astype(np.int64)
            ends = tables.costs[HEAD, start] + tables.rest[backs] + self.hops[backs]
            sums = self.least[tails, rows, backs - start] + ends
            if len(sums) and sums.min() < cheapest[0]:
                cheapest = float(sums.min()), start, int(backs[sums.argmin()])
        total, start, back = cheapest
        return total, self._traced(start, back) if total < INFINITY else [], (start, back)

    def _traced(self, start: int, back: int) -> list[_Item]:
        tail, length = int(back == self.problem.blocks - 1), back - start
        row = self.spread + _surplus(start, back)
        items = []
        for d, pick in zip(reversed(self.problem.workers), reversed(self.picks), strict=True):
            taken, surplus, source, before = map(int, pick[tail, row, length])
            if taken:
                items.append(_Item(d, taken, surplus, tail != source))
                tail, length, row = source, length - taken, before
        return items
