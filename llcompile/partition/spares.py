"""Which blocks devices hold besides those they run: --spare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from llcompile.ir.cluster import Cluster
from llcompile.ir.plan import BlockCost, Flow, Plan, ShardCosts
from llcompile.partition.clock import Clock
from llcompile.partition.disk import file_bytes
from llcompile.partition.divisions import answer_by, choose_divisions
from llcompile.partition.evaluate import held_costs
from llcompile.partition.holding import Held, choose, options_of
from llcompile.partition.moves import moves
from llcompile.partition.options import PlanOptions
from llcompile.partition.problem import INFINITY, Problem
from llcompile.partition.scenarios import Placed, Scenario, blocks_of, could_run, placements, scenarios
from llrun.schema import GraphRecord

STANDS_EMPTY = (
    "stands by, as devices.json asks, but memory_bytes or disk_bytes leave no room for a single block"
)
CHOOSING = 0.5  # share of the time that is for the MIP


class Spare(StrEnum):
    """Auto: what answers losses and slow devices best. None: nothing, but on devices that stand by. All: what fits."""

    AUTO = "auto"
    NONE = "none"
    ALL = "all"


@dataclass(frozen=True)
class Spares:
    """What each device holds, and what led to it.

    `held`: the blocks on each device's disk, ascending, those that it runs included; devices without any are left out.
    `problem`: the MIP that chose them, empty where there was nothing to choose. `answers`: for each scenario the plans
    that could be taken if every disk held them.
    """

    held: Mapping[str, tuple[int, ...]]
    problem: str
    answers: tuple[tuple[Scenario, tuple[Placed, ...]], ...]


def choose_spares(
    plan: Plan,
    costs: Sequence[BlockCost],
    flows: Sequence[Flow],
    cluster: Cluster,
    options: PlanOptions,
    spare: Spare,
    pieces: ShardCosts | None = None,
) -> Spares:
    """The whole blocks that each device holds. A device that stands by holds all that it could run, whatever `spare`
    says. What a device has of a group's blocks is beside these; what the plan's divisions answer as well, whole blocks
    are not held for.

    Same input, same spares, unless `options.time_limit_s` ends a search. Raises CompileError as `choose` does.
    """
    problem = Problem(
        tuple(costs), tuple(flows), _beside_pieces(plan, costs, cluster, pieces), options, pieces
    )
    must = {d.name: frozenset(blocks_of(d.name, plan.stages)) for d in cluster.devices}
    clock = Clock(options.time_limit_s)
    answers = tuple((s, placements(s, plan.stages, clock)) for s in scenarios(problem, plan.stages))
    better = tuple((s, _quicker(s, placed, plan)) for s, placed in answers)
    held, text = _chosen(problem, plan.tpot_s, better, must, spare, clock)
    filled = {
        device.name: _filled(problem, number, held[device.name])
        if device.standby or spare is Spare.ALL
        else tuple(sorted(held[device.name]))
        for number, device in enumerate(problem.devices)
    }
    return Spares({d.name: filled[d.name] for d in cluster.devices if filled[d.name]}, text, answers)


def _quicker(scenario: Scenario, placed: Sequence[Placed], plan: Plan) -> tuple[Placed, ...]:
    """Those of `placed` that are quicker than what the plan's divisions give."""
    by_division = answer_by(scenario, plan.stages, plan.divisions)
    least = by_division.tpot_s if by_division else INFINITY
    return tuple(each for each in placed if each.tpot_s < least)


def _beside_pieces(
    plan: Plan, costs: Sequence[BlockCost], cluster: Cluster, pieces: ShardCosts | None
) -> Cluster:
    """The cluster with the room that the files of pieces leave on disks."""
    grouped = [*(stage for stage in plan.stages if stage.is_group), *plan.divisions]
    files = {
        d.name: sum(map(file_bytes, held_costs(grouped, d.name, costs, pieces))) for d in cluster.devices
    }
    devices = tuple(replace(d, other_bytes=d.other_bytes + files[d.name]) for d in cluster.devices)
    return replace(cluster, devices=devices)


def with_divisions(
    plan: Plan,
    costs: Sequence[BlockCost],
    flows: Sequence[Flow],
    cluster: Cluster,
    options: PlanOptions,
    spare: Spare,
    pieces: ShardCosts | None,
) -> Plan:
    """`plan` with the other ways to cut its group's blocks that devices hold the pieces of."""
    if spare is Spare.NONE:
        return plan
    everything = spare is Spare.ALL
    return replace(plan, divisions=choose_divisions(plan, costs, flows, cluster, options, everything, pieces))


def with_spares(
    plan: Plan,
    costs: Sequence[BlockCost],
    flows: Sequence[Flow],
    cluster: Cluster,
    options: PlanOptions,
    graph: GraphRecord,
    spare: Spare,
    pieces: ShardCosts | None = None,
) -> Plan:
    """`plan` with the spares that `choose_spares` chooses, and what would be done with them. `graph` has the plan's
    groups and divisions."""
    chosen = choose_spares(plan, costs, flows, cluster, options, spare, pieces)
    spares = {
        name: tuple(b for b in blocks if b not in blocks_of(name, plan.stages))
        for name, blocks in chosen.held.items()
    }
    holding = {name for stage in plan.divisions for name in stage.devices}
    holding |= {name for name, blocks in spares.items() if blocks}
    nothing = {d.name: STANDS_EMPTY for d in cluster.standing_by() if d.name not in holding}
    held = replace(
        plan,
        unused={**plan.unused, **nothing},
        spares={name: blocks for name, blocks in spares.items() if blocks},
        spare_problem=chosen.problem,
    )
    return replace(
        held, moves=moves(held, chosen.answers, costs, cluster, graph, spare is not Spare.NONE, pieces)
    )


def _chosen(
    problem: Problem,
    tpot_s: float,
    answers: Sequence[tuple[Scenario, Sequence[Placed]]],
    must: Held,
    spare: Spare,
    clock: Clock,
) -> tuple[Held, str]:
    """What the MIP makes of it.

    It is asked where somebody may hold more than they run and a disk, or the wish to spare it, bounds that.
    """
    free = frozenset(d.name for d in problem.devices if d.standby or spare is Spare.ALL)
    bounded = any(d.name in free and d.disk_bytes is not None for d in problem.devices)
    if spare is not Spare.AUTO and not bounded:
        return must, ""
    options = options_of(answers, tpot_s)
    if spare is Spare.NONE:
        options = tuple(
            o for o in options if all(uses <= must[d] for d, uses in o.uses.items() if d not in free)
        )
    if not options:
        return must, ""
    return choose(problem, options, must, free, max(clock.left_s, clock.limit_s * CHOOSING))


def _filled(problem: Problem, device: int, held: frozenset[int]) -> tuple[int, ...]:
    """`held` and whatever else the device could run and its disk has room for, the first blocks first."""
    room = problem.disk[device] - sum(file_bytes(problem.costs[b]) for b in held)
    more = []
    for b in could_run(problem, device):
        size = file_bytes(problem.costs[b])
        if b not in held and size <= room:
            more.append(b)
            room -= size
    return tuple(sorted({*held, *more}))
