"""From costs, flows and devices to a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from llcompile.ir.cluster import Cluster
from llcompile.ir.errors import INTERNAL, CompileError
from llcompile.ir.plan import BlockCost, DeviceLoad, Flow, Plan, Stage
from llcompile.partition.check import check_plan
from llcompile.partition.clock import Clock
from llcompile.partition.evaluate import Figures, memory
from llcompile.partition.formulation import TOLERANCE, formulate, in_twin_order, values_of
from llcompile.partition.links import too_many_copies
from llcompile.partition.many import outlook_of
from llcompile.partition.mip import to_mps
from llcompile.partition.options import PlanOptions, check_pins
from llcompile.partition.problem import HEAD, INFINITY, Problem
from llcompile.partition.reasons import reasons
from llcompile.partition.refusal import check_possible, refuse
from llcompile.partition.search import Found, Outlook, found_plan, slowest
from llcompile.partition.solver import Solution, SolverStatus, solve
from llcompile.partition.transmissions import transmissions
from llrun.schema import PlanStatus

_BROKEN = "P222"
SOLVE = 0.9  # share of the time after which the solver is not started any more
LEAST_S = 1.0  # what it gets where nothing is known yet
COLUMNS = 12_000
HAIR = 1e-8
STANDS_BY = "stands by, as devices.json asks: it holds blocks and runs none at first"


def plan(costs: Sequence[BlockCost], flows: Sequence[Flow], cluster: Cluster, options: PlanOptions) -> Plan:
    """The best assignment of blocks to the devices at work: consecutive stages, the first and the last on the head.

    Same input, same plan, unless `options.time_limit_s` ends a search: then the plan is the best found till then, its
    bound a true one, and both may differ from run to run.

    Raises CompileError: P201 (exit 3) when nothing fits, P21x (exit 2) when the pins contradict each other, P222
    (exit 1) when the plan is not what it says it is: a fault of the planner.
    """
    check_pins(options.pins, cluster, len(costs))
    clock = Clock(options.time_limit_s)
    problem = Problem(tuple(costs), tuple(flows), cluster.at_work(), options)
    check_possible(problem)
    # What is too large to be solved is written first: the search then has all the time that is left.
    whole = None if solvable(problem) else to_mps(formulate(problem))
    outlook = outlook_of(problem, options.gap, Clock(clock.left_s))
    if outlook.best is None and outlook.exact:
        raise refuse(problem, SolverStatus.INFEASIBLE)
    text = whole or to_mps(formulate(problem, slowest_limit(problem, outlook), outlook.bound))
    solution = _solved(problem, outlook, text, clock)
    best = _best(problem, outlook.best, solution)
    if best is None:
        raise refuse(problem, solution.status)
    bound = max(outlook.bound, solution.bound)
    made = _plan(problem, best, bound, outlook, text, clock.spent_s)
    verify(made, problem)
    return replace(made, unused={**made.unused, **{d.name: STANDS_BY for d in cluster.standing_by()}})


def verify(made: Plan, problem: Problem) -> None:
    """Raises CompileError P222 (exit 1), naming every promise that the plan does not keep."""
    violations = check_plan(made, problem.costs, problem.flows, problem.cluster, problem.options)
    if violations:
        text = "; ".join(violations)
        raise CompileError(
            _BROKEN, f"the planner made a plan that is not one: {text}. Please report this", INTERNAL
        )


def _solved(problem: Problem, outlook: Outlook, text: str, clock: Clock) -> Solution:
    """What the solver makes of it in the time that is left, where there is something left to do and it may do it."""
    options, best = problem.options, outlook.best
    if best is not None:
        proven = outlook.bound >= best.figures.objective * (1 - options.gap)
        if proven or clock.beyond(SOLVE) or not solvable(problem):
            return Solution(SolverStatus.UNKNOWN, INFINITY, -INFINITY, {})
    return solve(text, max(clock.left_s, LEAST_S), options.gap, options.seed, _hint(problem, best))


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


def _plan(problem: Problem, best: Found, bound: float, outlook: Outlook, text: str, seconds: float) -> Plan:
    figures, options = best.figures, problem.options
    # The search tells plans apart by a limit a hair below the slowest device: so much is no gap.
    bound = figures.objective if bound >= figures.objective * (1 - HAIR) else bound
    gap = (figures.objective - bound) / figures.objective if figures.objective else 0.0
    return Plan(
        # Objectives are compared across a text and a solver: what is a hair over the gap asked for is within it.
        status=PlanStatus.OPTIMAL if gap <= options.gap + TOLERANCE else PlanStatus.FEASIBLE,
        objective=figures.objective,
        bound=bound,
        gap=gap,
        solve_s=seconds,
        seed=options.seed,
        ttft_s=figures.ttft_s,
        tpot_s=figures.tpot_s,
        chunk_s=figures.chunk_s,
        slowest_chunk_s=figures.slowest_chunk_s,
        precision=options.precision,
        shapes=options.shapes,
        prompt_tokens=options.prompt_tokens,
        new_tokens=options.new_tokens,
        sequences=options.sequences,
        stages=best.stages,
        devices=device_loads(best.stages, problem, figures),
        unused=reasons(problem, best, outlook),
        transmissions=transmissions(best.stages, problem.flows),
        problem=text,
    )


def stages_of(problem: Problem, values: Mapping[str, float]) -> tuple[Stage, ...]:
    """The stages that a solution's steps describe."""
    owners = [_owner(problem, values, block) for block in range(problem.blocks)]
    cuts = [b for b in range(1, problem.blocks) if owners[b] != owners[b - 1]]
    edges = [0, *cuts, problem.blocks]
    names = [problem.devices[owners[start]].name for start in edges[:-1]]
    return tuple(Stage.on(name, *edges[i : i + 2]) for i, name in enumerate(names))


def _owner(problem: Problem, values: Mapping[str, float], block: int) -> int:
    def has(device: int) -> float:
        held = values[f"begin_{block}_{device}"] - values[f"end_{block}_{device}"]
        return held + 1 if device == HEAD else held

    return max(range(len(problem.devices)), key=has)


def device_loads(stages: Sequence[Stage], problem: Problem, figures: Figures) -> Mapping[str, DeviceLoad]:
    """Memory and seconds of each device in use, in the cluster's order."""
    used = memory(stages, problem.costs, problem.flows, problem.cluster, problem.pieces)
    return {
        device.name: DeviceLoad(
            weights_bytes=used[device.name].weights,
            kv_bytes=used[device.name].cache,
            peak_bytes=used[device.name].peak,
            memory_bytes=device.memory_bytes,
            compute_s=figures.compute_s[device.name],
        )
        for device in problem.cluster.devices
        if device.name in used
    }
