"""What would be done for each device that is lost or slow: the table of the envelope."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llcompile.ir.cluster import Cluster
from llcompile.ir.plan import BlockCost, Move, Plan, ShardCosts, Stage
from llcompile.partition.envelope import envelope
from llcompile.partition.holding import LEAST_GAIN
from llcompile.partition.remedies import remedy
from llcompile.partition.scenarios import SLOWER, Placed, Scenario
from llrun.programs.placement import Placement, Rates
from llrun.schema import GraphRecord, MoveEvent, StageRecord

Answers = Sequence[tuple[Scenario, Sequence[Placed]]]


def moves(
    plan: Plan,
    answers: Answers,
    costs: Sequence[BlockCost],
    cluster: Cluster,
    graph: GraphRecord,
    spares: bool,
    pieces: ShardCosts | None = None,
) -> tuple[Move, ...]:
    """What the runtime would do in each scenario, from what devices hold, by the runtime's own placement.

    `change_s` is with one sequence of the request that the plan was made for; after a loss it begins when the loss is
    noticed. A slow device is left as it is where a move would save less than LEAST_GAIN of a token. `spares` False: the
    user wanted none.
    """
    known = envelope(plan.held, costs, cluster, plan.stages, pieces, plan.divisions)
    placement = Placement(graph, known, cluster.head, plan.shapes, Rates(), frozenset(plan.held))
    return tuple(
        _lost(placement, plan, scenario, placed, spares)
        if scenario.event is MoveEvent.LOST
        else _half(placement, plan, scenario.device)
        for scenario, placed in answers
    )


def _lost(
    placement: Placement, plan: Plan, scenario: Scenario, placed: Sequence[Placed], spares: bool
) -> Move:
    lost = frozenset({scenario.device})
    left = replace(placement, alive=frozenset(plan.held) - lost)
    before, held = records(plan.stages), (plan.prompt_tokens + plan.new_tokens,)
    after = left.best(before, held, lost=lost)
    if after is None:
        reason = remedy(scenario, placed, plan, spares)
        return Move(MoveEvent.LOST, scenario.device, False, None, None, (), reason)
    seconds = left.cost(before, after, held, lost).seconds
    return Move(MoveEvent.LOST, scenario.device, True, left.predict(after), seconds, _stages(after), "")


def _half(placement: Placement, plan: Plan, device: str) -> Move:
    slow = replace(placement, rates=Rates({device: SLOWER}))
    before, held = records(plan.stages), (plan.prompt_tokens + plan.new_tokens,)
    after, stay_s = slow.best(before, held), slow.predict(before)
    if after is None or slow.predict(after) > stay_s * (1 - LEAST_GAIN):
        return Move(MoveEvent.HALF, device, True, stay_s, 0.0, plan.stages, "")
    seconds = slow.cost(before, after, held).seconds
    return Move(MoveEvent.HALF, device, True, slow.predict(after), seconds, _stages(after), "")


def records(stages: Sequence[Stage]) -> tuple[StageRecord, ...]:
    return tuple(
        StageRecord(s.devices, s.shares, (s.start, s.stop), s.window, s.all_reduce, s.root, s.division)
        for s in stages
    )


def _stages(stages: Sequence[StageRecord]) -> tuple[Stage, ...]:
    return tuple(
        Stage(s.devices, s.shares, *s.blocks, s.window, s.all_reduce, s.root, s.division) for s in stages
    )
