"""From costs, flows and devices to a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from llcompile.ir.cluster import Cluster
from llcompile.ir.errors import INFEASIBLE, INTERNAL, CompileError
from llcompile.ir.plan import BlockCost, DeviceLoad, Flow, PieceCosts, Plan, ShardCosts, Stage
from llcompile.partition.answers import Answer, answer
from llcompile.partition.check import check_plan
from llcompile.partition.clock import Clock
from llcompile.partition.evaluate import Figures, evaluate, memory
from llcompile.partition.formulation import TOLERANCE
from llcompile.partition.grouped import exactly, grouped
from llcompile.partition.options import NO_GROUPS, PlanOptions, check_pins
from llcompile.partition.problem import Problem
from llcompile.partition.reasons import reasons
from llcompile.partition.transmissions import transmissions
from llrun.schema import PlanStatus

_BROKEN = "P222"
SINGLE = 0.6  # share of the time for plans of single devices, where there may be groups
HAIR = 1e-8
ANY = -1  # the block of costs that several blocks have
STANDS_BY = "stands by, as devices.json asks: it holds blocks and runs none at first"


def plan(
    costs: Sequence[BlockCost],
    flows: Sequence[Flow],
    cluster: Cluster,
    options: PlanOptions,
    shard_costs: ShardCosts | None = None,
) -> Plan:
    """The best assignment of blocks to the devices at work: consecutive stages, the first and the last on the head.

    `shard_costs`: what blocks cost in pieces; without it every stage is on one device. Same input, same plan, unless
    `options.time_limit_s` ends a search: then the plan is the best found till then, its bound a true one, and both may
    differ from run to run.

    Raises CompileError: P201 (exit 3) when nothing fits, P21x (exit 2) when wishes contradict each other, P222
    (exit 1) when the plan is not what it says it is: a fault of the planner.
    """
    check_pins(options.pins, cluster, len(costs))
    clock = Clock(options.time_limit_s)
    pieces = remembered(shard_costs) if shard_costs else None
    problem = Problem(tuple(costs), tuple(flows), cluster.at_work(), options, pieces)
    best, notes = _decided(problem, clock)
    made = _plan(problem, best, notes, clock.spent_s)
    verify(made, problem)
    return replace(made, unused={**made.unused, **{d.name: STANDS_BY for d in cluster.standing_by()}})


def remembered(shard_costs: ShardCosts) -> ShardCosts:
    """The same, asked once of each block, shares and number of parts; equal costs of whatever blocks are one object."""
    known: dict[tuple[tuple[float, ...], int], dict[int, PieceCosts | None]] = {}
    same: dict[PieceCosts, PieceCosts] = {}

    def pieces(blocks: Sequence[int], shares: tuple[float, ...], parts: int) -> Mapping[int, PieceCosts]:
        here = known.setdefault((shares, parts), {})
        new = [block for block in blocks if block not in here]
        if new:
            found = shard_costs(new, shares, parts)
            for block in new:
                cut = found.get(block)
                bare = cut and replace(
                    cut,
                    shards=tuple(replace(cost, block=ANY) for cost in cut.shards),
                    tails=tuple(replace(cost, block=ANY) for cost in cut.tails),
                )
                here[block] = bare and same.setdefault(bare, bare)
        return {block: cut for block in blocks if (cut := here[block]) is not None}

    return pieces


def _decided(problem: Problem, clock: Clock) -> tuple[Answer, tuple[str, ...]]:
    """The plan of single devices, of a group as asked for, or the best of all."""
    wish, use_all = problem.options.tensor_parallel, problem.options.use_all
    # Who wants a block for each device wants a whole one.
    if wish == NO_GROUPS or (wish is None and (problem.pieces is None or not problem.workers or use_all)):
        return answer(problem, clock), ()
    if wish is not None:
        return exactly(problem, wish)
    try:
        base = answer(problem, Clock(clock.limit_s * SINGLE))
    except CompileError as error:
        if error.exit_code != INFEASIBLE:
            raise
        found, notes = grouped(problem, clock, None)
        if found is None:
            raise
        return found, notes
    found, notes = grouped(problem, clock, base)
    return found or base, notes


def verify(made: Plan, problem: Problem) -> None:
    """Raises CompileError P222 (exit 1), naming every promise that the plan does not keep."""
    violations = check_plan(
        made, problem.costs, problem.flows, problem.cluster, problem.options, problem.pieces
    )
    if violations:
        text = "; ".join(violations)
        raise CompileError(
            _BROKEN, f"the planner made a plan that is not one: {text}. Please report this", INTERNAL
        )


def _plan(problem: Problem, best: Answer, notes: tuple[str, ...], seconds: float) -> Plan:
    figures, options, bound = best.found.figures, problem.options, best.bound
    stages = best.problem.expanded(best.found.stages)
    used = {name for stage in stages for name in stage.devices}
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
        stages=stages,
        devices=device_loads(stages, problem, figures),
        unused=reasons(problem, best.found, used, best.by_device),
        transmissions=transmissions(stages, problem.flows, problem.pieces),
        problem=best.text,
        notes=notes,
        portion=options.portion,
    )


def with_stages(made: Plan, problem: Problem, stages: tuple[Stage, ...], bound: float) -> Plan:
    """The plan with `stages` and what follows from them in `problem`, of whose objective `bound` is the least. That
    it is the best is not proven."""
    figures = evaluate(stages, problem.costs, problem.flows, problem.cluster, problem.options, problem.pieces)
    bound = min(bound, figures.objective)
    return replace(
        made,
        transmissions=transmissions(stages, problem.flows, problem.pieces),
        status=PlanStatus.FEASIBLE,
        objective=figures.objective,
        bound=bound,
        gap=(figures.objective - bound) / figures.objective if figures.objective else 0.0,
        ttft_s=figures.ttft_s,
        tpot_s=figures.tpot_s,
        chunk_s=figures.chunk_s,
        slowest_chunk_s=figures.slowest_chunk_s,
        stages=stages,
        devices=device_loads(stages, problem, figures),
    )


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
