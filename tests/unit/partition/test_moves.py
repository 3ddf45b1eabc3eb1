"""The table of the envelope: what it says would be done can be done, costs what it says, and its remedies cure."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from llcompile.bundle import graph_record
from llcompile.cost import flows
from llcompile.ir.cluster import Cluster, Device, Link
from llcompile.ir.plan import Move, Plan
from llcompile.partition import Spare, envelope, plan, with_spares
from llcompile.partition.disk import LIBRARIES_BYTES, RECORD_BYTES, file_bytes
from llcompile.partition.moves import records
from llcompile.partition.problem import Problem
from llcompile.partition.scenarios import scenarios
from llcompile.partition.search import found_plan
from llrun.programs.placement import Placement
from llrun.schema import MoveEvent
from tests.unit.partition.cases import OPTIONS, cost, device
from tests.unit.partition.graphs import layered

GRAPH = layered(5)
DESCRIBED = graph_record(GRAPH)
BLOCKS = len(GRAPH.blocks)
COSTS = tuple(cost(b, 100_000, 1000 * (b % 2)) for b in range(BLOCKS))
FLOWS = flows(GRAPH, OPTIONS.shapes.chunk)
# A worker holds nine blocks, the head five: either worker can do the other's part, and the head none of it.
THREE = (device("h", 520_000), device("a", 930_000), device("b", 930_000, 1e10, 8e8))
WANTED = re.compile(r"(memory|disk)_bytes of (\w+) to be (\d+), (\d+) more")


def clustered(*devices: Device) -> Cluster:
    return Cluster("h", devices, Link(1e7, 1e-5), {})


def planned(cluster: Cluster, spare: Spare = Spare.AUTO) -> Plan:
    made = plan(COSTS, FLOWS, cluster, OPTIONS)
    return with_spares(made, COSTS, FLOWS, cluster, OPTIONS, DESCRIBED, spare)


def moves_of(made: Plan) -> dict[tuple[str, str], Move]:
    return {(str(move.event), move.device): move for move in made.moves}


@pytest.mark.parametrize("spare", list(Spare))
def test_moves_can_be_made_and_give_what_they_say(spare: Spare) -> None:
    cluster = clustered(*THREE)
    made = planned(cluster, spare)
    placement = Placement(DESCRIBED, envelope(made.held, COSTS, cluster), "h", made.shapes)
    cases = {
        (str(s.event), s.device): s for s in scenarios(Problem(COSTS, FLOWS, cluster, OPTIONS), made.stages)
    }
    assert moves_of(made).keys() == cases.keys()
    assert {event for event, _ in cases} == {"lost", "half"}
    for key, move in moves_of(made).items():
        if not move.possible:
            continue
        before = () if move.event is MoveEvent.LOST else records(made.stages)
        assert placement.faults(records(move.stages), before) == []
        assert key[0] == "half" or all(stage.lead != move.device for stage in move.stages)
        figures = found_plan(cases[key].problem, move.stages).figures
        assert move.tpot_s == pytest.approx(figures.tpot_s)
        assert move.change_s is not None
        assert (move.change_s > 0) == (move.stages != made.stages)


def test_spares_make_losses_survivable_and_slow_devices_bearable() -> None:
    made = planned(clustered(*THREE))
    none, with_them = moves_of(planned(clustered(*THREE), Spare.NONE)), moves_of(made)
    workers = sorted({stage.lead for stage in made.stages} - {"h"})
    assert workers
    for name in workers:
        assert with_them["lost", name].possible
        assert not none["lost", name].possible
        assert none["lost", name].reason == "no other device holds its blocks: build with --spare auto"
    better = [with_them[key].tpot_s < none[key].tpot_s for key in none if key[0] == "half"]  # type: ignore[operator]
    assert any(better)
    assert all(none[key].stages == made.stages for key in none if key[0] == "half")


def test_change_after_a_loss_counts_reading_and_computing_again() -> None:
    """A slower disk makes it longer by what is read more slowly."""
    fast = clustered(*THREE)
    slow = clustered(*(replace(d, disk_bytes_per_s=d.disk_bytes_per_s / 10) for d in THREE))
    first, second = moves_of(planned(fast)), moves_of(planned(slow))
    for key, move in first.items():
        if key[0] == "lost":
            assert second[key].stages == move.stages
            assert second[key].change_s > move.change_s > 0  # type: ignore[operator]


def lost(cluster: Cluster, name: str) -> Move:
    return moves_of(planned(cluster))["lost", name]


@pytest.mark.parametrize("name", ["a", "b"])
def test_memory_that_is_asked_for_is_what_it_takes(name: str) -> None:
    """Two workers and a head that together just hold the model: to the byte what one has to have more."""
    tight = clustered(device("h", 330_000), device("a", 430_000), device("b", 530_000))
    move = lost(tight, name)
    assert not move.possible
    assert (move.tpot_s, move.change_s, move.stages) == (None, None, ())
    match = WANTED.search(move.reason)
    assert match, move.reason
    assert match[1] == "memory"
    whose, need, more = match[2], int(match[3]), int(match[4])
    assert tight.device(whose).memory_bytes + more == need
    for bytes_, possible in ((need, True), (need - 1, False)):
        devices = tuple(replace(d, memory_bytes=bytes_) if d.name == whose else d for d in tight.devices)
        # The plan is that of the small memory: what is asked is what a loss of it takes.
        first = plan(COSTS, FLOWS, tight, OPTIONS)
        given = with_spares(first, COSTS, FLOWS, clustered(*devices), OPTIONS, DESCRIBED, Spare.AUTO)
        assert moves_of(given)["lost", name].possible is possible


def test_disk_that_is_asked_for_is_what_it_takes() -> None:
    made = plan(COSTS, FLOWS, clustered(*THREE), OPTIONS)
    run = {d.name: sum(len(s.blocks) for s in made.stages if s.lead == d.name) for d in THREE}
    least = LIBRARIES_BYTES + RECORD_BYTES * BLOCKS
    bounded = clustered(
        *(replace(d, disk_bytes=least + (run[d.name] + 1) * file_bytes(COSTS[0])) for d in THREE)
    )
    given = with_spares(made, COSTS, FLOWS, bounded, OPTIONS, DESCRIBED, Spare.AUTO)
    losses = [move for move in given.moves if move.event is MoveEvent.LOST]
    assert losses
    for move in losses:
        assert not move.possible
        wanted = WANTED.findall(move.reason)
        assert wanted, move.reason
        assert {kind for kind, *_ in wanted} == {"disk"}
        more = {name: int(bytes_) for _, name, bytes_, _ in wanted}
        devices = tuple(replace(d, disk_bytes=more.get(d.name, d.disk_bytes)) for d in bounded.devices)
        cured = with_spares(made, COSTS, FLOWS, clustered(*devices), OPTIONS, DESCRIBED, Spare.AUTO)
        assert sum(m.possible for m in cured.moves if m.event is MoveEvent.LOST) > 0
