"""Local search over the order of workers, for clusters too large to look at every subset.

The cuts of a given order are exact, by dynamic programming (as llcompile.partition.search, one order instead of all),
for many orders at once: an array has a row for each. An order's neighbours have one worker more, less, exchanged or
elsewhere, a part reversed, or another end of the head's first stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from llcompile.ir.plan import Stage
from llcompile.partition.clock import Clock
from llcompile.partition.problem import HEAD, INFINITY, Problem
from llcompile.partition.tables import Numbers, Table, Tables

BATCH = 192  # neighbours looked at in one round
STOPS = 4  # ends of the head's first stage that a search begins with
COUNTS = 16  # numbers of workers
SHOTS = 10  # batches drawn at random where none of those fits
PATIENCE = 6  # rounds without a better plan before the search ends
Order = tuple[int, ...]


@dataclass(frozen=True)
class Route:
    """The workers in their order, where the head's first stage ends, and the least sum that the best cuts give."""

    order: Order
    stop: int
    sum: float


@dataclass(frozen=True)
class Cutter:
    """The best cuts of many orders under one limit."""

    tables: Tables

    @property
    def problem(self) -> Problem:
        return self.tables.problem

    @cached_property
    def _halves(self) -> tuple[int, Numbers, Numbers]:
        """How many sizes of runs there are, and for [d, k] which two of them cover the window of starts.

        A run is numbered size x (blocks + 1) + its begin, runs of 1, 2, 4 ... entries; the number after the last is
        for empty windows. As `window_minimum`, for windows that differ from row to row.
        """
        starts, stops = self.tables.starts, np.arange(self.problem.blocks + 1)
        widths = stops - starts
        sizes = np.log2(np.maximum(widths, 1)).astype(np.int64)
        count, row = int(sizes.max()) + 1, self.problem.blocks + 1
        first = np.where(widths > 0, sizes * row + starts, count * row)
        second = np.where(widths > 0, sizes * row + np.maximum(stops - 2**sizes, 0), count * row)
        return count, first, second

    def routes(self, orders: Sequence[Order], stops: Sequence[int]) -> list[Route]:
        """Each order with the end of the head's first stage; those that do not fit have an infinite sum."""
        padded, ends = _padded(orders), np.array(stops)
        table = self._start(ends)
        last = np.zeros(len(orders), dtype=np.int64)
        for column in padded.T:
            table, last = self._step(table, last, column)
        sums = self._finish(table, last, ends).min(axis=1)
        return [Route(*fields) for fields in zip(orders, stops, map(float, sums), strict=True)]

    def stages(self, route: Route) -> list[Stage]:
        """The stages of the best cuts of a route that fits."""
        ends = np.array([route.stop])
        tables = [self._start(ends)]
        last = np.zeros(1, dtype=np.int64)
        for device in route.order:
            table, last = self._step(tables[-1], last, np.array([device]))
            tables.append(table)
        stop = int(self._finish(tables[-1], last, ends)[0].argmin())
        runs = [(HEAD, stop, self.problem.blocks)]
        before = (HEAD, *route.order)
        for device, previous, table in zip(route.order[::-1], before[-2::-1], tables[-2::-1], strict=True):
            starts = np.arange(self.tables.starts[device, stop], stop)
            arrive = table[0, starts] + self.tables.hops[previous, device, starts]
            start = int(starts[(arrive - self.tables.costs[device, starts]).argmin()])
            runs.insert(0, (device, start, stop))
            stop = start
        runs.insert(0, (HEAD, 0, stop))
        names = [device.name for device in self.problem.devices]
        return [Stage.on(names[d], start, stop) for d, start, stop in runs]

    def _start(self, stops: Numbers) -> Table:
        table = np.full((len(stops), self.problem.blocks + 1), INFINITY)
        table[np.arange(len(stops)), stops] = self.tables.costs[HEAD, stops]
        return table

    def _step(self, table: Table, last: Numbers, devices: Numbers) -> tuple[Table, Numbers]:
        """One stage more in every row; -1: none."""
        active = devices >= 0
        chosen = np.where(active, devices, HEAD)
        total = self.tables.costs[chosen]
        arrive = table + self.tables.hops[last, chosen] - total
        count, first, second = self._halves
        rows, width = arrive.shape
        runs = np.full((rows, count * width + 1), INFINITY)
        runs[:, :width] = arrive
        for size in range(1, count):
            begin, half = size * width, 1 << (size - 1)
            shorter = runs[:, begin - width : begin]
            np.minimum(shorter[:, :-half], shorter[:, half:], out=runs[:, begin : begin + width - half])
        where = np.arange(rows)[:, None]
        best: Table = np.minimum(runs[where, first[chosen]], runs[where, second[chosen]])
        best += total
        best[:, -1] = INFINITY  # the last block is the head's
        return np.where(active[:, None], best, table), np.where(active, devices, last)

    def _finish(self, table: Table, last: Numbers, stops: Numbers) -> Table:
        """[i, k]: the whole plan's sum when the head takes over again at k."""
        cuts = np.arange(self.problem.blocks + 1)
        whole: Table = table + self.tables.hops[last, HEAD] + self.tables.rest + self.tables.returning(stops)
        whole[cuts[None, :] < self.tables.returns[stops][:, None]] = INFINITY
        return whole


def _padded(orders: Sequence[Order]) -> Numbers:
    longest = max(map(len, orders), default=0)
    return np.array([(*order, *[-1] * (longest - len(order))) for order in orders], dtype=np.int64)


def first_routes(cutter: Cutter, clock: Clock, share: float) -> list[Route]:
    """Orders to begin with: the fastest, the largest, the most useful workers, as many as are needed or more; else any.

    The best first; those that fit nowhere are left out, as is what `share` of the clock's time does not suffice for.
    """
    problem, tables = cutter.problem, cutter.tables
    if not len(tables.head_stops):
        return []
    reach = (np.arange(problem.blocks + 1) - tables.starts).max(axis=1)
    speed = tables.costs[:, -1]
    ranks = [speed, -reach, speed / np.maximum(reach, 1), tables.hops[:, :, 1:-1].min(axis=(1, 2)) + speed]
    orders: dict[Order, None] = {}
    for rank in ranks:
        ranked = sorted(problem.workers, key=lambda d: (float(rank[d]), d))
        counts = [len(ranked)] if problem.options.use_all else _spread(1, len(ranked), COUNTS)
        orders |= dict.fromkeys(tuple(ranked[:count]) for count in counts)
        orders |= dict.fromkeys(_chained(tables, ranked[:count]) for count in counts)
    pairs = [(order, stop) for stop in spread_stops(tables) for order in orders]
    random = np.random.default_rng(problem.options.seed)
    routes: list[Route] = []
    for batch in [*(pairs[i : i + BATCH] for i in range(0, len(pairs), BATCH)), *[None] * SHOTS]:
        if (clock.beyond(share) and (routes or batch is None)) or (routes and batch is None):
            break
        drawn = batch or [_random_route(problem, tables, random) for _ in range(BATCH)]
        routes += [route for route in cutter.routes(*zip(*drawn, strict=True)) if route.sum < INFINITY]
    return sorted(routes, key=lambda route: (route.sum, route.order))


def _random_route(problem: Problem, tables: Tables, random: np.random.Generator) -> tuple[Order, int]:
    """Any workers in any order, or all of them."""
    count = (
        len(problem.workers) if problem.options.use_all else int(random.integers(1, len(problem.workers) + 1))
    )
    order = random.permutation(np.array(problem.workers))[:count]
    return tuple(map(int, order)), int(random.choice(tables.head_stops))


def spread_stops(tables: Tables) -> list[int]:
    """A few ends of the head's first stage, from the first possible to the last but one."""
    stops = tables.head_stops[:-1] if len(tables.head_stops) > 1 else tables.head_stops
    return [int(stops[i]) for i in _spread(0, len(stops) - 1, STOPS)]


def _spread(first: int, last: int, count: int) -> list[int]:
    """At most `count` whole numbers from `first` to `last`, evenly."""
    return [int(value) for value in np.unique(np.linspace(first, last, count).astype(int))]


def _chained(tables: Tables, workers: Sequence[int]) -> Order:
    """`workers` so that each follows the one that reaches it best."""
    middle = tables.hops[:, :, tables.problem.blocks // 2]
    closed = np.full(len(middle), INFINITY)
    closed[list(workers)] = 0.0
    order, last = [], HEAD
    for _ in workers:
        last = int((middle[last] + closed).argmin())
        closed[last] = INFINITY
        order.append(last)
    return tuple(order)


def improve(cutter: Cutter, route: Route, clock: Clock, share: float, seed: int) -> Route:
    """The best route that local search finds from `route` on before `share` of the clock's time is over."""
    random = np.random.default_rng(seed)
    failures = 0
    while failures < PATIENCE and not clock.beyond(share):
        drawn = list(_neighbours(cutter, route, random))
        neighbour = min(cutter.routes(*zip(*drawn, strict=True)), key=lambda r: r.sum) if drawn else route
        failures = 0 if neighbour.sum < route.sum * (1 - 1e-12) else failures + 1
        route = neighbour if neighbour.sum < route.sum else route
    return route


def _neighbours(cutter: Cutter, route: Route, random: np.random.Generator) -> Iterator[tuple[Order, int]]:
    """BATCH neighbours drawn at random."""
    problem, order, stops = cutter.problem, route.order, cutter.tables.head_stops
    idle = [d for d in problem.workers if d not in order]
    here = int(np.searchsorted(stops, route.stop))
    for _ in range(BATCH):
        kind = int(random.integers(7))
        i, j = sorted(int(value) for value in random.integers(0, len(order), 2))
        at = int(random.integers(0, len(order) + 1))
        new = idle[int(random.integers(len(idle)))] if idle else HEAD
        if kind == 0 and idle:
            yield (*order[:at], new, *order[at:]), route.stop
        elif kind == 1 and len(order) > 1 and not problem.options.use_all:
            yield order[:i] + order[i + 1 :], route.stop
        elif kind == 2 and idle and not problem.options.use_all:
            yield (*order[:i], new, *order[i + 1 :]), route.stop
        elif kind == 3 and i < j:
            yield (*order[:i], order[j], *order[i + 1 : j], order[i], *order[j + 1 :]), route.stop
        elif kind == 4:
            rest = order[:i] + order[i + 1 :]
            yield (*rest[:at], order[i], *rest[at:]), route.stop
        elif kind == 5 and i < j:
            yield (*order[:i], *order[i : j + 1][::-1], *order[j + 1 :]), route.stop
        elif kind == 6:
            step = (
                int(random.integers(-3, 4))
                if random.random() < 0.7
                else int(random.integers(len(stops))) - here
            )
            yield order, int(stops[min(max(here + step, 0), len(stops) - 1)])


def with_worker(cutter: Cutter, route: Route, worker: int) -> Route | None:
    """The best of `route` with `worker` added anywhere, or in the place of another; of an empty one, worker alone."""
    order = route.order
    orders = [(*order[:i], worker, *order[i:]) for i in range(len(order) + 1)]
    orders += [(*order[:i], worker, *order[i + 1 :]) for i in range(len(order))]
    stops = [route.stop] if order else spread_stops(cutter.tables)
    pairs = [(order, stop) for stop in stops for order in orders]
    best = min(cutter.routes(*zip(*pairs, strict=True)), key=lambda r: r.sum)
    return best if best.sum < INFINITY else None
