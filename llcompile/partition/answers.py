"""One problem to its best plan and a bound: search first, then the solver where that leaves something to prove."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llcompile.partition.clock import Clock
from llcompile.partition.disk import file_bytes, room_bytes
from llcompile.partition.evaluate import held_costs, memory
from llcompile.partition.formulation import TOLERANCE, formulate, in_twin_order, values_of
from llcompile.partition.links import too_many_copies
from llcompile.partition.many import outlook_of, searched
from llcompile.partition.mip import to_mps
from llcompile.partition.planned import stages_of
from llcompile.partition.problem import INFINITY, Problem
from llcompile.partition.refusal import check_possible, refuse
from llcompile.partition.relaxation import Relaxation
from llcompile.partition.search import Found, Outlook, found_plan, slowest
from llcompile.partition.solver import Solution, SolverStatus, solve
from llcompile.partition.tables import Tables

SOLVE = 0.9  # share of the time after which the solver is not started any more
LEAST_S = 1.0  # what it gets where nothing is known yet
COLUMNS = 12_000


@dataclass(frozen=True)
class Answer:
    """The best plan of a problem that was found, what no plan of it is better than, what each device would bring, and
    the problem in MPS text."""

    problem: Problem
    found: Found
    bound: float
    by_device: Mapping[str, Found]
    text: str


def answer(problem: Problem, clock: Clock) -> Answer:
    """The best plan of single devices. Raises CompileError P201 (exit 3) when nothing fits."""
    check_possible(problem)
    # What is too large to be solved is written first: the search then has all the time that is left.
    whole = None if solvable(problem) else to_mps(formulate(problem))
    outlook = outlook_of(problem, problem.options.gap, Clock(clock.left_s))
    if outlook.best is None and outlook.exact:
        raise refuse(problem, SolverStatus.INFEASIBLE)
    text = whole or to_mps(formulate(problem, slowest_limit(problem, outlook), outlook.bound))
    solution = _solved(problem, outlook, text, clock)
    best = _best(problem, outlook.best, solution)
    if best is None:
        raise refuse(problem, solution.status)
    return Answer(problem, best, max(outlook.bound, solution.bound), by_name(problem, outlook), text)


@dataclass(frozen=True)
class Look:
    """What is known of a problem: the best plan that is one in truth, None where there is none yet, and a bound.

    `near`: whether there was a plan that is none in truth, the head having too much.
    """

    found: Found | None
    bound: float
    by_device: Mapping[str, Found]
    near: bool = False


def look(problem: Problem, clock: Clock, target: float) -> Look:
    """All plans with the group of `problem` or without, as far as search goes.

    `target`: an objective that is known to be possible: what is proven to be no better is not looked into further.
    """
    outlook = outlook_of(problem, problem.options.gap, clock, target)
    if outlook.best is None:
        return Look(None, INFINITY if outlook.exact else outlook.bound, {})
    true = holds(problem, outlook.best)
    return Look(outlook.best if true else None, outlook.bound, by_name(problem, outlook), not true)


def glance(problem: Problem, clock: Clock, target: float) -> Look:
    """The same in little time: a plan of local search, and a bound of the path relaxation."""
    found = searched(problem, Clock(clock.left_s / 2), None)
    bound, _ = Relaxation(Tables(problem)).bound(target, Clock(clock.left_s), 1.0)
    return Look(found if found and holds(problem, found) else None, bound, {})


def prove(problem: Problem, known: Look, clock: Clock) -> Look:
    """What the solver makes of it, where it may do it."""
    if not solvable(problem):
        return known
    text, options = to_mps(formulate(problem, floor=known.bound)), problem.options
    solution = solve(text, clock.left_s, options.gap, options.seed, _hint(problem, known.found))
    found = _best(problem, known.found, solution)
    bound = max(known.bound, solution.bound)
    return Look(found if found and holds(problem, found) else known.found, bound, known.by_device)


def by_name(problem: Problem, outlook: Outlook) -> dict[str, Found]:
    """The best plans found that use each device, the group's members one by one, where they are plans in truth."""
    plans: dict[str, Found] = {}
    for found in outlook.by_device.values():
        if holds(problem, found):
            for name in {name for stage in problem.expanded(found.stages) for name in stage.devices}:
                known = plans.get(name)
                if known is None or found.figures.objective < known.figures.objective:
                    plans[name] = found
    return plans


def holds(problem: Problem, found: Found) -> bool:
    """Whether all devices have the memory and the disk for a plan: in question where the head is in its group."""
    if problem.group is None or not problem.group.has_head:
        return True
    stages, cluster = problem.expanded(found.stages), problem.real
    used = memory(stages, problem.costs, problem.flows, cluster, problem.pieces)
    if any(used[name].peak > cluster.device(name).memory_bytes for name in used):
        return False
    held = held_costs(stages, cluster.head, problem.costs, problem.pieces)
    room = room_bytes(cluster.device(cluster.head), problem.blocks)
    return room is None or sum(map(file_bytes, held)) <= room


def solvable(problem: Problem) -> bool:
    """Whether the problem is of a size at which the solver gets anywhere in seconds."""
    count = len(problem.devices)
    moves = 0 if problem.uniform else count * (count - 1)
    return problem.blocks * (2 * count + moves) <= COLUMNS and not too_many_copies(problem)


def slowest_limit(problem: Problem, outlook: Outlook) -> float:
    """Seconds of the slowest device or link beyond which no plan is better than the best one known."""
    weight = problem.weights.slowest
    if outlook.best is None or not weight:
        return INFINITY
    return (outlook.best.figures.objective - outlook.least_sum) / weight * (1 + TOLERANCE)


def _solved(problem: Problem, outlook: Outlook, text: str, clock: Clock) -> Solution:
    """What the solver makes of it in the time that is left, where there is something left to do and it may do it."""
    options, best = problem.options, outlook.best
    if best is not None:
        proven = outlook.bound >= best.figures.objective * (1 - options.gap)
        if proven or clock.beyond(SOLVE) or not solvable(problem):
            return Solution(SolverStatus.UNKNOWN, INFINITY, -INFINITY, {})
    return solve(text, max(clock.left_s, LEAST_S), options.gap, options.seed, _hint(problem, best))


def _hint(problem: Problem, best: Found | None) -> Mapping[str, float] | None:
    if best is None:
        return None
    stages = in_twin_order(problem, best.stages)
    return values_of(problem, stages, slowest(problem, best.figures))


def _best(problem: Problem, known: Found | None, solution: Solution) -> Found | None:
    """The solver's plan, or the one it was given when it has none better."""
    ordered = known and Found(in_twin_order(problem, known.stages), known.figures)
    if not solution.values:
        return ordered
    solved = found_plan(problem, stages_of(problem, solution.values))
    return ordered if ordered and ordered.figures.objective < solved.figures.objective else solved
