"""Groups and what may happen: the runtime predicts and maps them as the planner does; lost and slow members, spares."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llcompile.bundle.records import transmission_records
from llcompile.cost import flows
from llcompile.ir.cluster import Cluster, Link
from llcompile.ir.plan import Plan, Stage
from llcompile.partition import Spare, envelope, plan, with_spares
from llcompile.partition.check import check_plan
from llcompile.partition.disk import LIBRARIES_BYTES, RECORD_BYTES, file_bytes
from llcompile.partition.evaluate import evaluate, memory
from llcompile.partition.moves import records
from llcompile.partition.transmissions import transmissions
from llrun.programs.placement import Placement
from llrun.programs.transmissions import transmissions as from_graph
from llrun.schema import AllReduceKind
from tests.unit.partition.cases import OPTIONS, cost, device
from tests.unit.partition.cut import linear
from tests.unit.partition.graphs import layered
from tests.unit.partition.grouped_graph import with_groups

GRAPH = layered(5)
BLOCKS = len(GRAPH.blocks)
COSTS = tuple(
    replace(cost(b.id, 100_000, 1000 * (b.id % 2)), last_row_only=b.last_row_only) for b in GRAPH.blocks
)
FLOWS = flows(GRAPH, OPTIONS.shapes.chunk)
PIECES = linear(COSTS)
LINK = Link(1e8, 1e-5)
WISHES = replace(OPTIONS, tensor_parallel=2, prompt_tokens=32)


def cluster(memory: int = 5_000_000, disk: int | None = None) -> Cluster:
    devices = tuple(replace(device(n, memory, 1e9, 1e8), disk_bytes=disk) for n in ("h", "a", "b"))
    return Cluster(
        "h", (replace(devices[0], memory_bytes=memory * 2, disk_bytes=None), *devices[1:]), LINK, {}
    )


def spared(given: Cluster, spare: Spare = Spare.AUTO, stages: tuple[Stage, ...] | None = None) -> Plan:
    made = plan(COSTS, FLOWS, given, WISHES, PIECES)
    if stages:
        made = replace(made, stages=stages)
    return with_spares(made, COSTS, FLOWS, given, WISHES, with_groups(GRAPH, made.stages), spare, PIECES)


def group(kind: AllReduceKind, *devices: str) -> tuple[Stage, ...]:
    shares = (0.5, 0.3, 0.2) if len(devices) == 3 else (0.6, 0.4)
    return (
        Stage.on("h", 0, 2),
        Stage(devices, shares, 2, BLOCKS - 2, 0, kind, len(devices) - 1 if kind is AllReduceKind.STAR else 0),
        Stage.on("h", BLOCKS - 2, BLOCKS),
    )


@pytest.mark.parametrize("kind", list(AllReduceKind))
@pytest.mark.parametrize("devices", [("a", "b"), ("h", "a"), ("h", "a", "b")])
@pytest.mark.parametrize("parallel", [False, True])
def test_runtime_maps_and_predicts_a_group_as_the_planner_does(
    kind: AllReduceKind, devices: tuple[str, ...], parallel: bool
) -> None:
    graph, given = layered(5, parallel), cluster()
    stages, crossing = group(kind, *devices), flows(graph, OPTIONS.shapes.chunk)
    record = with_groups(graph, stages)
    due = transmission_records(transmissions(stages, crossing, PIECES))
    assert from_graph(record, records(stages)) == due
    held = {n: tuple(b for s in stages if s.devices == (n,) for b in s.blocks) for n in ("h", "a", "b")}
    known = envelope(held, COSTS, given, stages, PIECES)
    placement = Placement(record, known, "h", OPTIONS.shapes)
    figures = evaluate(stages, COSTS, crossing, given, OPTIONS, PIECES)
    assert placement.predict(records(stages)) == pytest.approx(figures.tpot_s)
    assert placement.chunk_s(records(stages)) == pytest.approx(figures.chunk_s)
    assert placement.pipeline_s(records(stages), 3) == pytest.approx(
        figures.chunk_s + 2 * figures.slowest_chunk_s
    )
    # One byte less than the planner says is too little, and nothing less.
    for name, used in memory(stages, COSTS, crossing, given, PIECES).items():
        for less in (0, 1):
            limits = tuple(
                replace(d, memory_bytes=used.peak - less) if d.name == name else d for d in given.devices
            )
            tight = envelope(held, COSTS, replace(given, devices=limits), stages, PIECES)
            faults = Placement(record, tight, "h", OPTIONS.shapes).faults(records(stages))
            assert len(faults) == less, faults


def test_lost_member_is_replaced_by_whole_blocks_that_others_hold() -> None:
    made = spared(cluster())
    (_, group_, _), moves = made.stages, {(str(m.event), m.device): m for m in made.moves}
    assert group_.is_group
    workers = [name for name in group_.devices if name != "h"]
    assert moves.keys() == {("lost", n) for n in workers} | {("half", n) for n in {*group_.devices, "h"}}
    for name in workers:
        move = moves["lost", name]
        assert move.possible, move.reason
        assert not any(stage.is_group or name in stage.devices for stage in move.stages)
        for stage in move.stages:
            assert set(stage.blocks) <= set(made.held[stage.lead])
        assert move.tpot_s is not None
        assert move.tpot_s > made.tpot_s
    assert check_plan(made, COSTS, FLOWS, cluster(), WISHES, PIECES) == []


def test_without_spares_a_lost_member_says_what_is_missing() -> None:
    made = spared(cluster(), Spare.NONE)
    assert made.spares == {}
    assert {m.reason for m in made.moves if not m.possible} == {
        "no other device holds its blocks: build with --spare auto"
    }


def test_slow_member_goes_on_where_nothing_better_is_held() -> None:
    made = spared(cluster(), Spare.NONE)
    for move in made.moves:
        if move.event == "half":
            assert (move.possible, move.change_s, move.stages) == (True, 0.0, made.stages)
            assert move.tpot_s is not None
            assert move.tpot_s > made.tpot_s


def test_spares_leave_room_for_the_pieces_on_the_disk() -> None:
    """A disk for the pieces and three whole blocks beside holds three spares; without the pieces it would hold more."""
    pieces = PIECES(range(1, BLOCKS - 1), (0.5, 0.5), 2)
    files = sum(file_bytes(cost) for cut in pieces.values() for cost in (cut.shards[0], cut.tails[0]))
    room = LIBRARIES_BYTES + RECORD_BYTES * BLOCKS + files + 3 * file_bytes(COSTS[2]) + 100
    made = spared(cluster(disk=room), Spare.ALL)
    worker = next(name for name in made.stages[1].devices if name != "h")
    assert len(made.spares[worker]) == 3
