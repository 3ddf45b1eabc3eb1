"""Plans and bounds for more workers than subsets can be looked at: knapsack, or local search and relaxation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llcompile.ir.plan import Stage
from llcompile.partition.clock import Clock
from llcompile.partition.knapsack import Knapsack, alternates
from llcompile.partition.orders import Cutter, Order, Route, first_routes, improve, with_worker
from llcompile.partition.problem import HEAD, INFINITY, Problem
from llcompile.partition.relaxation import Prices, Relaxation
from llcompile.partition.search import Found, Outlook, found_plan, least_seconds, search, slowest
from llcompile.partition.tables import Tables

SUBSETS = 8  # workers up to which llcompile.partition.search looks at every subset
KNAPSACK = 5  # the same where the knapsack is there to do it faster
# Limits on the slowest device that are tried, as shares of that of the cheapest plan.
LIMITS = (0.85, 0.7, 0.55, 0.45, 0.35)
CLOSER = (1.0, 0.95, 0.9)
SPLIT = 0.92  # where plans are told apart for their bound, as a share of the best plan's slowest
# Shares of the time at which parts end: the first plan, those under limits, relaxations, what others would bring.
FIRST, LIMITED, BOUNDED, SPLITTING, OTHERS = 0.15, 0.4, 0.6, 0.9, 0.95
SPLITS = 24
NARROW = 1e-3  # relative; ranges of the slowest device that are not split any more


def outlook_of(problem: Problem, gap: float, clock: Clock, target: float = INFINITY) -> Outlook:
    """The best plan found, what each device would bring, and a bound, by what suits the problem's size.

    `target`: an objective known to be possible: what is proven to be no better is not looked into further.
    """
    few = KNAPSACK if alternates(problem) else SUBSETS
    if len(problem.workers) <= few:
        outlook = search(problem, gap, clock, target=target)
        if outlook.exact:
            return outlook
        return _joined(problem, outlook, _relaxed(problem, gap, clock, outlook.best))
    if few == KNAPSACK:
        outlook = search(problem, gap, clock, Knapsack)
        if outlook.best is None:
            return outlook
        return Outlook(
            outlook.best,
            {**_with_others(problem, outlook.best, clock), **outlook.by_device},
            outlook.bound,
            outlook.least_sum,
            True,
        )
    return _relaxed(problem, gap, clock, None)


def _joined(problem: Problem, first: Outlook, second: Outlook) -> Outlook:
    """The better of two plans, with the better of two bounds."""
    best = min((o.best for o in (first, second) if o.best), key=lambda b: b.figures.objective, default=None)
    bound = max(first.bound, second.bound)
    return Outlook(best, {**second.by_device, **first.by_device}, bound, first.least_sum, second.exact)


def _relaxed(problem: Problem, gap: float, clock: Clock, known: Found | None) -> Outlook:
    """Local search for a plan, and the path relaxation for a bound. `exact` when nothing but the head alone fits."""
    best = searched(problem, clock, known)
    target = best.figures.objective * (1 - gap) if best else INFINITY
    bound = _bound(problem, best, target, clock)
    alone = _alone(problem)
    if alone:
        bound = min(bound, alone.figures.objective)
    return Outlook(
        best,
        _with_others(problem, best, clock) if best else {},
        bound,
        least_seconds(problem),
        bound == INFINITY,
    )


def _alone(problem: Problem) -> Found | None:
    if not problem.head_alone():
        return None
    return found_plan(problem, [Stage.on(problem.devices[HEAD].name, 0, problem.blocks)])


def searched(problem: Problem, clock: Clock, known: Found | None) -> Found | None:
    """The best plan of local search: the cheapest, then the cheapest whose slowest device is faster and faster."""
    best, seed = _better(known, _alone(problem)), problem.options.seed
    cutter = Cutter(Tables(problem))
    starts = first_routes(cutter, clock, FIRST / 2)
    if not starts:
        return best
    cheapest = found_plan(problem, cutter.stages(improve(cutter, starts[0], clock, FIRST, seed)))
    best = _better(best, cheapest)
    shares = (
        [(share, slowest(problem, cheapest.figures)) for share in LIMITS] if problem.weights.slowest else []
    )
    for number, (share, seconds) in enumerate(shares):
        part = FIRST + (LIMITED - FIRST) * 0.7 * (number + 1) / len(shares)
        best = _better(best, _limited(problem, seconds * share, best, clock, part))
    for number, share in enumerate(CLOSER if problem.weights.slowest else ()):
        if best is not None and len(best.stages) > 1:
            part = LIMITED - (LIMITED - FIRST) * 0.3 * (1 - (number + 1) / len(CLOSER))
            limit = slowest(problem, best.figures) * share * (1 + 1e-9)
            best = _better(best, _limited(problem, limit, best, clock, part))
    return best


def _limited(problem: Problem, limit: float, best: Found | None, clock: Clock, share: float) -> Found | None:
    """The best plan of local search whose slowest device takes no more than `limit` seconds."""
    if clock.beyond(share):
        return None
    cutter = Cutter(Tables(problem, limit))
    starts = first_routes(cutter, clock, share)
    if best is not None and len(best.stages) > 1 and len(cutter.tables.head_stops):
        order, stop = _order(problem, best)
        again = [route for route in cutter.routes([order], [stop]) if route.sum < INFINITY]
        starts = sorted([*again, *starts], key=lambda route: route.sum)
    if not starts:
        return None
    return found_plan(problem, cutter.stages(improve(cutter, starts[0], clock, share, problem.options.seed)))


def _order(problem: Problem, plan: Found) -> tuple[Order, int]:
    numbers = {device.name: d for d, device in enumerate(problem.devices)}
    return tuple(numbers[stage.lead] for stage in plan.stages[1:-1]), plan.stages[0].stop


def _better(old: Found | None, new: Found | None) -> Found | None:
    if old is None or new is None:
        return old or new
    return new if new.figures.objective < old.figures.objective else old


def _bound(problem: Problem, best: Found | None, target: float, clock: Clock) -> float:
    """A bound on plans with workers: the least over ranges of the slowest device, the weakest of which is split."""
    tables, w = Tables(problem), problem.weights
    if best is None:
        return Relaxation(tables).bound(least_seconds(problem), clock, BOUNDED)[0]
    overall, prices = Relaxation(tables).bound(target, clock, BOUNDED)
    ranges = [_PricedRange(overall, 0.0, best.figures.objective / w.slowest if w.slowest else 0.0, prices)]
    edge = slowest(problem, best.figures) * SPLIT
    for _ in range(SPLITS if w.slowest else 0):
        if ranges[0].bound >= target or clock.beyond(SPLITTING):
            break
        weakest, *others = ranges
        middle = edge if weakest.low < edge < weakest.high else (weakest.low + weakest.high) / 2
        if middle - weakest.low <= NARROW * weakest.high:
            break
        parts = [
            (weakest.low, middle, Tables(problem, middle)),
            (middle, weakest.high, Tables(problem, weakest.high)),
        ]
        halves = [
            _PricedRange(max(weakest.bound, bound), low, high, better)
            for low, high, limited in parts
            for bound, better in [Relaxation(limited, low).bound(target, clock, SPLITTING, weakest.prices)]
        ]
        ranges = sorted([*others, *halves], key=lambda range_: (range_.bound, range_.low))
    return ranges[0].bound


@dataclass(frozen=True)
class _PricedRange:
    """A bound on plans whose slowest device or link takes from `low` to `high` seconds, and the prices that gave it.

    Plans above the first range's `high` are worse than the one known.
    """

    bound: float
    low: float
    high: float
    prices: Prices


def _with_others(problem: Problem, best: Found, clock: Clock) -> Mapping[int, Found]:
    """For each worker that `best` leaves out the best plan with it that is a step away."""
    cutter = Cutter(Tables(problem))
    if not len(cutter.tables.head_stops):
        return {}
    if len(best.stages) > 1:
        route = Route(*_order(problem, best), 0.0)
    else:
        route = Route((), int(cutter.tables.head_stops[-1]), 0.0)
    plans = {}
    for worker in problem.workers:
        if worker not in route.order and not clock.beyond(OTHERS):
            other = with_worker(cutter, route, worker)
            if other is not None:
                plans[worker] = found_plan(problem, cutter.stages(other))
    return plans
