"""A bound for many devices: paths through (worker, block) that may use a worker more than once, at a price.

Lagrangian relaxation (Geoffrion, "Lagrangean relaxation for integer programming", 1974; Fisher, Management Science
27, 1981). Relaxed are: each worker at most once, the head's memory over both its stages, and that no device is busy
for longer than `slowest`. Given prices for these, the cheapest path is found by dynamic programming over the blocks;
its value is a bound for any prices, which a subgradient search improves. What the search computes decides how good
the bound is, never whether it is true.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from llcompile.partition.clock import Clock
from llcompile.partition.problem import HEAD, INFINITY, Problem
from llcompile.partition.tables import Numbers, Table, Tables

STEPS = 400  # of the subgradient search; deterministic as long as the clock does not end it
STALL = 12  # steps without a better bound before steps get shorter
SHORTEST = 1e-3  # length of step at which the search ends
FARTHEST = 1e9  # of a step, where next to nothing is violated
DEAREST = 1e4  # price, in stages: more would cost digits
ROUNDING = 1e-9  # relative; sums of floats along a path


@dataclass(frozen=True)
class Prices:
    """Of using worker d again ([d], the head's is 0), of the head's memory, of a second of the slowest device ([d]),
    and of the slowest being a token's seconds / sequences. All in the objective's unit, none negative."""

    uses: Table
    memory: float
    busy: Table
    token: float


@dataclass(frozen=True)
class _Walk:
    """A cheapest path: its value, and what the path uses of each thing that has a price, less what is allowed."""

    value: float
    uses: Table
    memory: float
    busy: Table
    token: float


@dataclass(frozen=True)
class Relaxation:
    """The bound on plans whose slowest device or link takes from `low` to `tables.limit` seconds."""

    tables: Tables
    low: float = 0.0

    @property
    def problem(self) -> Problem:
        return self.tables.problem

    def bound(
        self, target: float, clock: Clock, share: float, start: Prices | None = None
    ) -> tuple[float, Prices]:
        """The best bound on the objective found before `share` of the clock's time is over.

        With the prices that gave it. `target`: an objective that is known to be possible, at which the search may stop.
        Plans that stay on the head are not considered. Infinite: no other plan fits.
        """
        zero = np.zeros(len(self.problem.devices))
        prices = best = start or Prices(zero, 0.0, zero, float(self.problem.weights.by_token))
        if not len(self.tables.head_stops) or not self.problem.workers:
            return INFINITY, prices
        highest, length, stalled = -INFINITY, 1.0, 0
        stage = self._stage
        for _ in range(STEPS):
            walk = self._walk(prices)
            if walk is None:
                return INFINITY, prices
            if walk.value > highest + 1e-7 * abs(highest if highest > -INFINITY else 0.0):
                highest, best, stalled = walk.value, prices, 0
            else:
                stalled += 1
            if highest >= target or length < SHORTEST or clock.beyond(share):
                break
            if stalled >= STALL:
                length, stalled, prices = length / 2, 0, best
                continue
            prices = self._next(prices, walk, length * max(target - walk.value, 1e-6 * target), stage)
        return highest - ROUNDING * abs(highest), best

    def _next(self, prices: Prices, walk: _Walk, distance: float, scale: float) -> Prices:
        """A step along the subgradient, back to what prices may be; those of uses and memory in units of `scale`."""
        weight = self.problem.weights.slowest
        uses = scale * _towards(prices.uses, walk.uses)
        memory = scale * float(_towards(np.array(prices.memory), np.array(walk.memory)))
        busy = weight * _towards(prices.busy, walk.busy)
        token = weight * float(_towards(np.array(prices.token), np.array(walk.token)))
        norm = float((uses**2).sum() + memory**2 + (busy**2).sum() + token**2)
        step = min(distance / norm, FARTHEST) if norm > 0 else 0.0
        most = DEAREST * scale
        moved = np.maximum(0.0, np.append(prices.busy + step * busy, prices.token + step * token))
        shares = _simplex(moved) if moved.sum() > 1 else moved
        return Prices(
            np.clip(prices.uses + step * scale * uses, 0.0, most),
            min(max(0.0, prices.memory + step * scale * memory), most),
            shares[:-1],
            float(shares[-1]),
        )

    @cached_property
    def _stage(self) -> float:
        """About what a stage adds to the objective: the unit of the prices of uses."""
        reach = (np.arange(self.problem.blocks + 1) - self.tables.starts)[1:].max(axis=1)
        longest = min(1.0, max(1.0, float(np.median(reach))) / self.problem.blocks)
        seconds = self.tables.costs[:, -1] + (
            self.tables.loads[:, -1] if self.problem.weights.by_token else 0.0
        )
        return float(np.median(seconds)) * longest

    @cached_property
    def _stored(self) -> Table:
        """[k]: share of the head's room for weights and cache that the blocks before k take."""
        costs = self.problem.costs
        room = self.problem.free[HEAD] - max(costs[0].activation_bytes, costs[-1].activation_bytes)
        stored = np.cumsum([0, *(cost.weights_bytes + cost.cache_bytes for cost in costs)])
        return np.asarray(stored / max(1, room), dtype=np.float64)

    @cached_property
    def _closed(self) -> list[Table]:
        """[k][d, s]: 0 where worker d may have the blocks from `_low(k)` + s to k, else infinite."""
        cuts = np.arange(self.problem.blocks)
        return [
            np.where(self.tables.starts[:, k, None] <= cuts[self._low(k) : k], 0.0, INFINITY)
            for k in range(self.problem.blocks)
        ]

    def _low(self, k: int) -> int:
        """No stage that ends before k begins earlier, whosever it is."""
        return min(k - 1, int(self.tables.starts[:, k].min())) if k else 0

    @cached_property
    def _hops(self) -> Table:
        """[k, e, d]: the hop from d to e before k, near together in memory."""
        return np.ascontiguousarray(self.tables.hops.transpose(2, 1, 0))

    def _walk(self, prices: Prices) -> _Walk | None:
        problem, tables, w = self.problem, self.tables, self.problem.weights
        blocks, count = problem.blocks, len(problem.devices)
        more = 1 + (w.slowest * prices.token / (w.token * w.sequences) if w.by_token else 0.0)
        total = tables.costs * more + w.slowest * prices.busy[:, None] * tables.loads
        stored = prices.memory * self._stored
        end, arrive = np.full((count, blocks), INFINITY), np.full((count, blocks), INFINITY)
        starts, sources = np.zeros((count, blocks), dtype=np.int64), np.zeros((count, blocks), dtype=np.int64)
        leaves = np.isin(np.arange(blocks), tables.head_stops)
        everyone = np.arange(count)
        for k in range(1, blocks):
            low = k - self._closed[k].shape[1]
            window = arrive[:, low:k] + self._closed[k]
            which = window.argmin(axis=1)
            starts[:, k] = low + which
            end[:, k] = window[everyone, which] + total[:, k] + prices.uses
            end[HEAD, k] = total[HEAD, k] + stored[k] if leaves[k] else INFINITY
            reached = end[:, k] + more * self._hops[k]
            sources[:, k] = reached.argmin(axis=1)
            arrive[:, k] = reached[everyone, sources[:, k]] - total[:, k]
        returns = arrive[HEAD] + total[HEAD, -1] + stored[-1] - stored[:-1] + more * self._returning
        returns[: int(tables.returns.min())] = INFINITY
        # The head itself is no worker to return from: leaving and returning at once is a plan of one stage.
        back = int(returns.argmin())
        if returns[back] == INFINITY:
            return None
        return self._used(prices, float(returns[back]), back, starts, sources)

    @cached_property
    def _returning(self) -> Table:
        stops = self.tables.head_stops
        return np.asarray(self.tables.returning(stops).min(axis=0)[:-1])

    def _used(self, prices: Prices, value: float, back: int, starts: Numbers, sources: Numbers) -> _Walk:
        """Follow the path backwards."""
        problem, tables, w = self.problem, self.tables, self.problem.weights
        count = len(problem.devices)
        uses, busy = np.full(count, -1.0), np.zeros(count)
        uses[HEAD] = 0.0
        plain = tables.costs[HEAD, -1] - tables.costs[HEAD, back] + self._returning[back]
        device, k, joined = int(sources[HEAD, back]), back, HEAD
        while True:
            plain += tables.hops[device, joined, k]
            if device == HEAD:
                break
            start = int(starts[device, k])
            uses[device] += 1
            busy[device] += tables.loads[device, k] - tables.loads[device, start]
            plain += tables.costs[device, k] - tables.costs[device, start]
            device, k, joined = int(sources[device, start]), start, device
        plain += tables.costs[HEAD, k]
        busy[HEAD] = tables.loads[HEAD, k] + tables.loads[HEAD, -1] - tables.loads[HEAD, back]
        kept = self._stored[k] + self._stored[-1] - self._stored[back] - 1
        left = 1 - float(prices.busy.sum()) - prices.token
        value += -float(prices.uses.sum()) - prices.memory + w.slowest * max(0.0, left) * self.low
        token = plain / (w.token * w.sequences) - self.low if w.by_token else -1.0
        return _Walk(value, uses, kept, busy - self.low, token)


def _towards(price: Table, excess: Table) -> Table:
    """The subgradient, without what would make a price of 0 negative."""
    return np.asarray(np.where((price <= 0) & (excess < 0), 0.0, excess))


def _simplex(values: Table) -> Table:
    """The nearest point whose entries are not negative and sum to 1 (Held, Wolfe and Crowder, 1974)."""
    values = values - values.max()  # changes nothing but the rounding of large ones
    ordered = np.sort(values)[::-1]
    excess = np.cumsum(ordered) - 1
    last = int(np.nonzero(ordered - excess / np.arange(1, len(values) + 1) > 0)[0][-1])
    return np.asarray(np.maximum(0.0, values - excess[last] / (last + 1)))
