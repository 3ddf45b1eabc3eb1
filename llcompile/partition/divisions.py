"""Other ways to cut a group's blocks, of which devices hold the pieces: for a member that is lost or slow.

Without a lost member, or with an idle device in its place; with the same members, a slow one having less. One that is
in use takes memory, the others only disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from llcompile.ir.cluster import Cluster
from llcompile.ir.plan import BlockCost, Flow, Plan, ShardCosts, Stage
from llcompile.partition.disk import file_bytes, room_bytes
from llcompile.partition.evaluate import evaluate, held_costs, memory
from llcompile.partition.groups import ways_to_sum
from llcompile.partition.holding import LEAST_GAIN
from llcompile.partition.options import PlanOptions
from llcompile.partition.problem import INFINITY, Problem
from llcompile.partition.scenarios import Placed, Scenario, scenarios
from llcompile.partition.shares import splits
from llrun.schema import MoveEvent

SHARES = 2  # ways to share that are looked at for each set of devices: by speed, and corrected
MOST = (
    1.25  # bytes on a device's disk, of those of the group's whole blocks, unless all is to be held that fits
)


def choose_divisions(
    plan: Plan,
    costs: Sequence[BlockCost],
    flows: Sequence[Flow],
    cluster: Cluster,
    options: PlanOptions,
    everything: bool,
    pieces: ShardCosts | None,
) -> tuple[Stage, ...]:
    """The divisions that devices hold beside the plan's own, numbered from 1: for each loss of a member, then for each
    that is half as fast, the quickest that memory and disks have room for, where it saves a token LEAST_GAIN at least
    beside those that are held already; `everything`: whatever it saves.

    None of plans without a group, or whose weights stream: a ring holds what the plan has it hold.
    """
    grouped = [number for number, stage in enumerate(plan.stages) if stage.is_group]
    if pieces is None or len(grouped) != 1 or any(stage.window for stage in plan.stages):
        return ()
    problem = Problem(tuple(costs), tuple(flows), cluster, options, pieces)
    room = _room(problem, plan.stages, plan.stages[grouped[0]], everything)
    taken: list[Stage] = []
    for scenario in scenarios(problem, plan.stages):
        if scenario.device not in plan.stages[grouped[0]].devices:
            continue
        held = answer_by(scenario, plan.stages, taken)
        least = min(held.tpot_s if held else INFINITY, scenario.stay_s)
        for division, placed in sorted(_ways(scenario, plan.stages), key=lambda way: way[1].tpot_s):
            files = _files(problem, division)
            if placed.tpot_s > least * (1.0 if everything else 1 - LEAST_GAIN):
                break
            if all(size <= room[name] for name, size in files.items()):
                room |= {name: room[name] - size for name, size in files.items()}
                taken.append(replace(division, division=len(taken) + 1))
                break
    return tuple(taken)


def answer_by(scenario: Scenario, stages: Sequence[Stage], divisions: Sequence[Stage]) -> Placed | None:
    """The quickest of `stages` with a division in the place of their group, of those that can be; None: none can."""
    placed = (_placed(scenario, stages, division) for division in divisions)
    return min((each for each in placed if each), key=lambda each: each.tpot_s, default=None)


def _ways(scenario: Scenario, stages: Sequence[Stage]) -> Iterator[tuple[Stage, Placed]]:
    """Divisions that may answer a scenario, each with the plan that it gives."""
    group, cluster = next(stage for stage in stages if stage.is_group), scenario.problem.cluster
    pieces = scenario.problem.pieces
    assert pieces is not None
    for names in _members(scenario, stages, group):
        for shares in islice(splits(scenario.problem, names), SHARES):
            made = (
                # What is sent of a sum then has the formats that the plan has given it.
                [replace(group, shares=shares)]
                if names == group.devices
                else [
                    each.stage(group.start, group.stop)
                    for each in ways_to_sum(cluster, names, shares, group.blocks, pieces)
                ]
            )
            for division in made:
                if placed := _placed(scenario, stages, division):
                    yield division, placed


def _members(scenario: Scenario, stages: Sequence[Stage], group: Stage) -> Iterator[tuple[str, ...]]:
    if scenario.event is MoveEvent.HALF:
        yield group.devices
        return
    left = tuple(name for name in group.devices if name != scenario.device)
    if len(left) > 1:
        yield left
    used = {name for stage in stages for name in stage.devices}
    for device in scenario.problem.cluster.devices:
        if device.name not in used:
            yield tuple(device.name if name == scenario.device else name for name in group.devices)


def _placed(scenario: Scenario, stages: Sequence[Stage], division: Stage) -> Placed | None:
    """The plan with the division in the place of its group, and its TPOT; None where it cannot be."""
    problem, pieces = scenario.problem, scenario.problem.pieces
    known = {device.name for device in problem.devices}
    made = tuple(division if stage.is_group else stage for stage in stages)
    if pieces is None or not {name for stage in made for name in stage.devices} <= known:
        return None
    if len(pieces(division.blocks, division.shares, division.parts)) < len(division.blocks):
        return None
    old = [stage for stage in scenario.kept if stage.is_group]
    for name, used in memory(made, problem.costs, problem.flows, problem.cluster, pieces).items():
        kept = held_costs(old, name, problem.costs, pieces)
        beside = sum(cost.weights_bytes + cost.cache_bytes for cost in kept)
        if used.peak + beside > problem.cluster.device(name).memory_bytes:
            return None
    figures = evaluate(made, problem.costs, problem.flows, problem.cluster, problem.options, pieces)
    return Placed(made, figures.tpot_s)


def _room(problem: Problem, stages: Sequence[Stage], group: Stage, everything: bool) -> dict[str, float]:
    """[device]: bytes of its disk that divisions may take."""
    whole = MOST * sum(file_bytes(problem.costs[block]) for block in group.blocks)
    room = {}
    for device in problem.cluster.devices:
        free = room_bytes(device, problem.blocks)
        run = sum(map(file_bytes, held_costs(stages, device.name, problem.costs, problem.pieces)))
        left = INFINITY if free is None else free - run
        room[device.name] = left if everything else min(left, whole)
    return room


def _files(problem: Problem, division: Stage) -> Mapping[str, int]:
    """[device]: bytes of the files of a division's pieces."""
    return {
        name: sum(map(file_bytes, held_costs([division], name, problem.costs, problem.pieces)))
        for name in division.devices
    }
