"""How activations travel: --wire, and what `auto` makes of it, as a whole and for each tensor that leaves a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from llcompile.ir.cluster import Cluster
from llcompile.ir.errors import INFEASIBLE, CompileError
from llcompile.ir.plan import BlockCost, Flow, Plan, ShardCosts
from llcompile.partition.clock import Clock
from llcompile.partition.evaluate import Figures, evaluate
from llcompile.partition.options import PlanOptions
from llcompile.partition.planner import plan, with_stages
from llcompile.partition.problem import Problem
from llrun.schema import PlanStatus, WireFormat

AUTO = "auto"
Make = Callable[[WireFormat, float], Plan]  # a plan for what travels so, in so many seconds

# Of TTFT or TPOT, what float16 must save beside float32, which changes no bit, and narrower formats beside the wider.
LEAST_F16, LEAST_NARROW = 0.01, 0.05
LEAST_S = 1.0


def plan_wire(wish: str, devices: int, limit_s: float, make: Make) -> Plan:
    """The plan that `make` makes for the format asked for, or for the one that `auto` takes.

    That is f32, which changes no bit, unless f16 shortens TTFT or TPOT by LEAST_F16; and q8 only where that shortens
    either by LEAST_NARROW beside the wider one. Never q4: what that costs in quality is for the user to want. Raises
    what `make` raises for the format asked for; one that `auto` cannot have is left out.
    """
    if wish != AUTO or devices == 1:
        return make(WireFormat.F32 if wish == AUTO else WireFormat(wish), limit_s)
    clock = Clock(limit_s)
    exact = make(WireFormat.F32, limit_s / 2)
    narrow = _tried(make, WireFormat.Q8, clock.left_s / 2)
    if narrow is None or not shorter(narrow, exact, LEAST_F16):
        return exact
    half = _tried(make, WireFormat.F16, clock.left_s)
    best = half if half and shorter(half, exact, LEAST_F16) else exact
    return narrow if shorter(narrow, best, LEAST_NARROW) else best


def shorter(plan: Plan, other: Plan, share: float) -> bool:
    """Whether `plan` has a TTFT or TPOT that is shorter by more than `share`, and is not worse as a whole."""
    less = plan.ttft_s < other.ttft_s * (1 - share) or plan.tpot_s < other.tpot_s * (1 - share)
    return less and plan.objective <= other.objective


def _tried(make: Make, wire: WireFormat, limit_s: float) -> Plan | None:
    try:
        return make(wire, limit_s)
    except CompileError as error:
        if error.exit_code != INFEASIBLE:
            raise
        return None  # its buffers do not fit


def settled(
    flows: Sequence[Flow], exact: Sequence[Flow], wires: Mapping[str, WireFormat]
) -> tuple[Flow, ...]:
    """`flows` where a plan has been made: a tensor has its format for as long as there is the bundle, wherever its
    blocks run; what the plan does not send is as in `exact`, in float32."""
    return tuple(flow if flow.tensor in wires else other for flow, other in zip(flows, exact, strict=True))


def widened(
    made: Plan,
    costs: Sequence[BlockCost],
    flows: tuple[Sequence[Flow], Sequence[Flow]],
    cluster: Cluster,
    options: PlanOptions,
    shard_costs: ShardCosts | None = None,
) -> Plan:
    """The plan whose tensors travel in float32 where a narrower format saves next to nothing, as over quick links.

    `flows`: those that `made` was made for, and the same in float32. Of what a format must save to be taken at all,
    LEAST_F16 or LEAST_NARROW of TTFT or TPOT, each tensor must save its part, so that together they cost no more than
    that. Sums of a group stay as they are. No device needs more memory: what is coded it has in both formats. A plan
    that was proven is proven for what travels so.
    """
    given, exact = flows
    problem = Problem(tuple(costs), tuple(given), cluster.at_work(), options, shard_costs)
    narrow = sorted(made.wires.keys() & {flow.tensor for flow in problem.flows})
    least = (LEAST_F16 if made.precision.wire is WireFormat.F16 else LEAST_NARROW) / max(len(narrow), 1)
    base = _figures(made, problem)

    def saves(tensor: str) -> bool:
        figures = _figures(made, _with_flows(problem, exact, {tensor}))
        return any(
            wide > narrow * (1 + least)
            for wide, narrow in ((figures.ttft_s, base.ttft_s), (figures.tpot_s, base.tpot_s))
        )

    wide = {tensor for tensor in narrow if not saves(tensor)}
    if not wide:
        return made
    mixed = with_stages(made, _with_flows(problem, exact, wide), made.stages, made.bound)
    if made.status is not PlanStatus.OPTIMAL or mixed.gap <= problem.options.gap:
        return mixed
    others = wide | {flow.tensor for flow in problem.flows} - set(narrow)
    return _proven(replace(mixed, status=PlanStatus.FEASIBLE), _with_flows(problem, exact, others), cluster)


def _proven(mixed: Plan, problem: Problem, cluster: Cluster) -> Plan:
    """The best plan for the formats that `mixed` settles, of which that of one format for all is no bound to speak of:
    `mixed` itself, or better. As it is where the time does not suffice."""
    left_s = max(problem.options.time_limit_s - mixed.solve_s, LEAST_S)
    options = replace(problem.options, time_limit_s=left_s)
    try:
        best = plan(problem.costs, problem.flows, cluster, options, problem.pieces)
    except CompileError as error:
        if error.exit_code != INFEASIBLE:
            raise
        return mixed
    better = best.status is PlanStatus.OPTIMAL and best.objective <= mixed.objective * (1 + options.gap)
    return replace(best, solve_s=mixed.solve_s + best.solve_s) if better else mixed


def _with_flows(problem: Problem, exact: Sequence[Flow], wide: set[str]) -> Problem:
    flows = (w if w.tensor in wide else flow for flow, w in zip(problem.flows, exact, strict=True))
    return replace(problem, flows=tuple(flows))


def _figures(made: Plan, problem: Problem) -> Figures:
    return evaluate(
        made.stages, problem.costs, problem.flows, problem.cluster, problem.options, problem.pieces
    )
