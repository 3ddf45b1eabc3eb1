"""Dynamic programming over subsets of workers: a plan to start the MIP from, a bound, and what each device would bring.

A state is (workers used, the last of them); its table holds, for each end a of the head's first stage and each
block k, the least cost of having the blocks before k done: cost[a, k]. A further worker takes the run k..j-1, whose
first possible start for each j is the same reach that the MIP uses, so that a step is a minimum over a sliding
window. The slowest device enters as a limit on every stage's seconds; the search is repeated under other limits, as
more seconds in all may buy a faster slowest device. A cut is charged what it costs at least (a tensor that skips
stages may cost more), so that a sum found under a limit is a true lower bound for plans within it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from llcompile.ir.plan import Stage
from llcompile.partition.clock import Clock
from llcompile.partition.evaluate import Figures, evaluate
from llcompile.partition.problem import HEAD, INFINITY, Problem
from llcompile.partition.tables import Numbers, Table, Tables, window_minimum

State = tuple[int, int]  # bit set of the workers used, the last of them (0: none)

ROUNDS = 100  # limits tried for the slowest device
BEAM = 400  # states kept of each number of workers; fewer than 9 workers never have more
TABLE_ENTRIES = 12_000_000  # of all tables of one limit together: 96 MB
SHARE = 0.7  # of the time that planning may take
EDGE = 1e-9  # a limit this much below a plan's slowest device excludes the plan


@dataclass(frozen=True)
class Found:
    stages: tuple[Stage, ...]
    figures: Figures


@dataclass(frozen=True)
class Outlook:
    """`best`: the best plan found, None when no arrangement fits. `by_device`: the best found that uses each
    worker. `bound`: no plan's objective is lower; `least_sum`: nor is what it holds besides the slowest device or
    link. `exact`: no state was left out, so `best` None means infeasible; otherwise the bounds are weak."""

    best: Found | None
    by_device: Mapping[int, Found]
    bound: float
    least_sum: float
    exact: bool


@dataclass(frozen=True, order=True)
class _Range:
    """Plans whose slowest device takes from `low` to `high` seconds: none has an objective below `bound`, or a sum
    (the objective without the slowest) below `least`."""

    bound: float
    low: float
    high: float
    least: float


def found_plan(problem: Problem, stages: Sequence[Stage]) -> Found:
    """`stages` with their figures."""
    made = problem.expanded(stages)
    figures = evaluate(made, problem.costs, problem.flows, problem.real, problem.options, problem.pieces)
    return Found(tuple(stages), figures)


class Sweep(Protocol):
    """All plans under one limit on the slowest device, the slowest itself aside."""

    exact: bool

    def least(self) -> float:
        """The least sum of any plan; infinite when there is none."""
        ...

    def cheapest(self) -> Found:
        """The plan that has it."""
        ...

    def plans(self) -> Iterator[tuple[Found, tuple[int, ...]]]:
        """Plans worth knowing, each with its workers."""
        ...


def search(
    problem: Problem,
    gap: float,
    clock: Clock,
    sweep_of: Callable[[Problem, float], Sweep] | None = None,
    target: float = INFINITY,
) -> Outlook:
    """Look for the best plan and a bound, until they are within `gap` (relative) of each other or time is short.

    `sweep_of`: what looks at all plans under a limit; subsets of the workers unless told otherwise. `target`: an
    objective known to be possible; what is proven to be no better is not looked into further.

    Branch and bound over the seconds of the slowest device: the range that promises most is cut in half, the lower
    half gets its cheapest plan, and that plan's own slowest device says where the range below it ends. Above it
    nothing is cheaper: that part is closed.
    """
    best: Found | None = None
    by_device: dict[int, Found] = {}
    exact, least_sum, closed = True, 0.0, INFINITY
    open_ = [_Range(0.0, 0.0, INFINITY, 0.0)]
    make = sweep_of or Subsets
    for round_ in range(ROUNDS):
        if round_ and clock.beyond(SHARE):
            break
        range_ = min(open_)
        known = min(target, best.figures.objective) if best is not None else target
        if range_.bound >= known * (1 - gap):
            break
        limit = range_.high if range_.high == INFINITY else (range_.low + range_.high) / 2
        sweep = make(problem, limit)
        exact, least = exact and sweep.exact, sweep.least()
        for plan, workers in sweep.plans():
            best = _better(best, plan)
            by_device |= {d: _better(by_device.get(d), plan) for d in workers}
        open_.remove(range_)
        if limit < INFINITY:
            open_.append(_Range(_bound(problem, range_.least, limit), limit, range_.high, range_.least))
        else:
            least_sum = least
        if least < INFINITY:
            reached = max(range_.low, min(limit, slowest(problem, sweep.cheapest().figures) * (1 - EDGE)))
            closed = min(closed, _bound(problem, least, reached))
            open_.append(_Range(_bound(problem, least, range_.low), range_.low, reached, least))
        if not open_:
            break
    bound = min([closed, *(range_.bound for range_ in open_)])
    if not exact:
        bound = least_sum = least_seconds(problem)
    return Outlook(best, by_device, min(bound, best.figures.objective) if best else bound, least_sum, exact)


def least_seconds(problem: Problem) -> float:
    """No plan has a lower sum: every block where it costs least, no hops."""
    return float(sum(min(costs) for costs in zip(*problem.block_cost, strict=True)))


def _bound(problem: Problem, least: float, low: float) -> float:
    """No plan of that least sum, whose slowest device takes `low` seconds or more, has a lower objective."""
    w = problem.weights
    slowest_ = max(low, least / (w.token * w.sequences)) if w.by_token else low
    return least + w.slowest * slowest_


def _better(old: Found | None, new: Found) -> Found:
    return new if old is None or new.figures.objective < old.figures.objective else old


def slowest(problem: Problem, figures: Figures) -> float:
    """Seconds of the slowest device or link of a plan, as the objective counts them."""
    return figures.slowest_token_s if problem.weights.by_token else figures.slowest_chunk_s


class Subsets:
    """All tables under one limit, a state for each subset of the workers and the last of them."""

    def __init__(self, problem: Problem, limit: float) -> None:
        self.problem = problem
        self.limit = limit
        self.exact = True
        tables = Tables(problem, limit)
        self.costs, self.starts, self.hops = tables.costs, tables.starts, tables.hops
        self.alone, self.returns = tables.alone, tables.returns
        self.stops = self._thinned(tables.head_stops)
        self.returning = tables.returning(self.stops)
        self.tables: dict[State, Table] = {}
        self._fill()

    def _thinned(self, stops: Numbers) -> Numbers:
        """Ends of the head's first stage, fewer when tables would be large."""
        blocks, workers = self.problem.blocks, len(self.problem.workers)
        states = min(workers * 2 ** max(workers - 1, 0), BEAM * workers)
        most = max(4, TABLE_ENTRIES // max(1, states * (blocks + 1)))
        if len(stops) > most:
            self.exact = False
            stops = stops[np.unique(np.linspace(0, len(stops) - 1, most).astype(int))]
        return stops

    def _fill(self) -> None:
        problem = self.problem
        if not len(self.stops):
            return
        start = np.full((len(self.stops), problem.blocks + 1), INFINITY)
        start[np.arange(len(self.stops)), self.stops] = self.costs[HEAD][self.stops]
        layer: dict[State, Table] = {(0, HEAD): start}
        for _ in problem.workers:
            grown = {state: table for state, table in self._grow(layer) if np.isfinite(table).any()}
            layer = self._keep(grown)
            self.tables |= layer

    def _grow(self, layer: Mapping[State, Table]) -> Iterator[tuple[State, Table]]:
        """Every state of one worker more."""
        sources: dict[State, list[State]] = {}
        for used, last in sorted(layer):
            for d in self.problem.workers:
                if not used >> d & 1:
                    sources.setdefault((used | 1 << d, d), []).append((used, last))
        for (used, d), before in sorted(sources.items()):
            arrive = np.minimum.reduce([layer[state] + self.hops[state[1]][d] for state in before])
            yield (used, d), self._stage(d, arrive)

    def _stage(self, d: int, arrive: Table) -> Table:
        """cost[a, j] = P[j] + min over starts k of (arrive[a, k] - P[k]), P being d's costs of the blocks before."""
        total: Table = self.costs[d]
        stops = np.arange(self.problem.blocks + 1)
        costs = window_minimum(arrive - total, self.starts[d], stops)
        costs[:, -1] = INFINITY  # the last block is the head's
        costs += total
        return costs

    def _keep(self, layer: dict[State, Table]) -> dict[State, Table]:
        if len(layer) <= BEAM:
            return layer
        self.exact = False
        left = (self.costs[:, -1:] - self.costs).min(axis=0)  # the rest of the model on any one device
        promise = sorted(layer, key=lambda state: (float((layer[state] + left).min()), state))
        return {state: layer[state] for state in sorted(promise[:BEAM])}

    # --- plans ---------------------------------------------------------------------------------------------------

    @cached_property
    def ends(self) -> Mapping[State, Table]:
        """Total cost of a plan whose last worker's stage ends before k, by state: [a, k]."""
        blocks = np.arange(self.problem.blocks + 1)
        possible = blocks >= self.returns[self.stops][:, None] if len(self.stops) else np.zeros((0, 0), bool)
        if not self.tables:
            return {}
        rest = self.costs[HEAD][-1] - self.costs[HEAD] + self.returning
        return {
            state: np.where(possible, table + self.hops[state[1]][HEAD] + rest, INFINITY)
            for state, table in self.tables.items()
        }

    def _complete(self) -> list[tuple[float, State]]:
        """Cheapest cost of each state that can end a plan, cheapest first."""
        everyone = sum(1 << d for d in self.problem.workers)
        states = [s for s in self.ends if not self.problem.options.use_all or s[0] == everyone]
        costs = [(float(self.ends[state].min()), state) for state in states]
        return sorted((cost, state) for cost, state in costs if cost < INFINITY)

    def least(self) -> float:
        """The least cost of any plan under the limit, the slowest device or link aside; infinite when there is none."""
        complete = self._complete()
        return min(self.alone, complete[0][0] if complete else INFINITY)

    def cheapest(self) -> Found:
        """The plan that costs `least`."""
        return next(self.plans())[0]

    def plans(self) -> Iterator[tuple[Found, tuple[int, ...]]]:
        """The cheapest plan, then the cheapest that uses each worker, each with its workers."""
        complete = self._complete()
        picks = dict.fromkeys(state for _, state in complete[:1])
        for d in self.problem.workers:
            picks |= dict.fromkeys([state for _, state in complete if state[0] >> d & 1][:1])
        alone = self.alone
        if alone < INFINITY and (not complete or alone <= complete[0][0]):
            yield self._found([(HEAD, 0, self.problem.blocks)]), ()
        for state in picks:
            stages = self._trace(state)
            yield self._found(stages), tuple(sorted({d for d, _, _ in stages} - {HEAD}))
        if alone < INFINITY and complete and alone > complete[0][0]:
            yield self._found([(HEAD, 0, self.problem.blocks)]), ()

    def _found(self, runs: list[tuple[int, int, int]]) -> Found:
        names = [device.name for device in self.problem.devices]
        return found_plan(self.problem, [Stage.on(names[d], start, stop) for d, start, stop in runs])

    def _trace(self, state: State) -> list[tuple[int, int, int]]:
        """The runs (device, start, stop) of the cheapest plan that ends in `state`, found backwards."""
        a, stop = np.unravel_index(int(self.ends[state].argmin()), self.ends[state].shape)
        runs = [(HEAD, int(stop), self.problem.blocks)]
        while state[0]:
            state = self._before(state, int(a), runs[0][1], runs)
        return [(HEAD, 0, int(self.stops[a])), *runs]

    def _before(self, state: State, a: int, stop: int, runs: list[tuple[int, int, int]]) -> State:
        """The state that the stage which ends before `stop` was entered from; puts the stage in front of `runs`."""
        used, d = state
        rest = used & ~(1 << d)
        starts = np.arange(int(self.starts[d][stop]), stop)
        options = []
        for before in self._states(rest):
            table = self._table(before)[a, starts] + self.hops[before[1]][d][starts] - self.costs[d][starts]
            options.append((float(table.min()), before, int(starts[int(table.argmin())])))
        _, before, start = min(options)
        runs.insert(0, (d, start, stop))
        return before

    def _states(self, used: int) -> list[State]:
        if not used:
            return [(0, HEAD)]
        return [(used, d) for d in self.problem.workers if (used, d) in self.tables]

    def _table(self, state: State) -> Table:
        if state[0]:
            return self.tables[state]
        start = np.full((len(self.stops), self.problem.blocks + 1), INFINITY)
        start[np.arange(len(self.stops)), self.stops] = self.costs[HEAD][self.stops]
        return start
