"""Other ways to cut a group's blocks: which are held, and that the runtime finds the best of what is held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, permutations
from random import Random

import pytest

from llcompile.cost import flows
from llcompile.ir.cluster import Cluster, Link
from llcompile.ir.plan import Plan, Stage
from llcompile.partition import Spare, envelope, plan, with_divisions, with_spares
from llcompile.partition.check import check_plan
from llcompile.partition.disk import LIBRARIES_BYTES, RECORD_BYTES, file_bytes
from llcompile.partition.evaluate import held_costs
from llcompile.partition.moves import records
from llrun.programs.graph import check_graph
from llrun.programs.placement import LinkRate, Placement, Rates
from llrun.programs.question import picoseconds
from llrun.schema import AllReduceKind, StageRecord
from tests.unit.partition.cases import OPTIONS, cost, device
from tests.unit.partition.cut import linear
from tests.unit.partition.graphs import layered
from tests.unit.partition.grouped_graph import with_groups

GRAPH = layered(3)
BLOCKS = len(GRAPH.blocks)
INNER = (1, BLOCKS - 1)
COSTS = tuple(cost(b, 1_000_000, 1000 * (b % 2)) for b in range(BLOCKS))
FLOWS = flows(GRAPH, OPTIONS.shapes.chunk)
PIECES = linear(COSTS)
LINK = Link(1e8, 1e-5)


def cluster(*names: str, memory: int = 50_000_000, disk: int | None = None) -> Cluster:
    devices = tuple(replace(device(n, memory, 1e9, 1e8), disk_bytes=disk) for n in names)
    return Cluster("h", (replace(device("h", memory, 1e9, 2e7)), *devices), LINK, {})


def spared(given: Cluster, count: int, spare: Spare = Spare.AUTO) -> Plan:
    wishes = replace(OPTIONS, tensor_parallel=count, prompt_tokens=32)
    made = plan(COSTS, FLOWS, given, wishes, PIECES)
    made = with_divisions(made, COSTS, FLOWS, given, wishes, spare, PIECES)
    graph = with_groups(GRAPH, (*made.stages, *made.divisions))
    assert check_graph(graph) == []
    made = with_spares(made, COSTS, FLOWS, given, wishes, graph, spare, PIECES)
    assert check_plan(made, COSTS, FLOWS, given, wishes, PIECES) == []
    return made


def group_of(stages: Sequence[Stage]) -> Stage:
    (found,) = [stage for stage in stages if stage.is_group]
    return found


def test_a_group_runs_without_its_lost_member() -> None:
    made = spared(cluster("a", "b", "c"), 3)
    members = group_of(made.stages).devices
    moves = {(str(m.event), m.device): m for m in made.moves}
    for name in members:
        if name != "h":
            left = group_of(moves["lost", name].stages)
            assert left in made.divisions
            assert name not in left.devices
    assert [each.division for each in made.divisions] == [*range(1, len(made.divisions) + 1)]


def test_an_idle_device_takes_the_place_of_a_lost_one() -> None:
    """Of two, what is left is no group."""
    made = spared(cluster("a", "b", "c"), 2)
    planned = group_of(made.stages)
    (idle,) = {"a", "b", "c"} - set(planned.devices)
    for move in made.moves:
        if move.event == "lost":
            assert {*group_of(move.stages).devices} == {idle, *planned.devices} - {move.device}
    assert idle in made.held


def test_a_slow_member_is_given_less() -> None:
    """Half as fast as the other: a third of the columns."""
    made = spared(cluster("a", "b"), 2)
    planned = group_of(made.stages)
    assert planned.devices == ("a", "b")
    moves = {m.device: m for m in made.moves if m.event == "half"}
    for rank, name in enumerate(planned.devices):
        slow = group_of(moves[name].stages)
        assert slow.devices == planned.devices
        assert slow.shares[rank] == pytest.approx(1 / 3, abs=0.05)
        assert (slow.all_reduce, slow.root) == (planned.all_reduce, planned.root)


def test_what_is_held_is_as_asked_and_as_disks_allow() -> None:
    assert spared(cluster("a", "b", "c"), 3, Spare.NONE).divisions == ()
    every = spared(cluster("a", "b", "c"), 3, Spare.ALL)
    some = spared(cluster("a", "b", "c"), 3)
    assert len(every.divisions) >= len(some.divisions) > 0
    files = max(
        sum(map(file_bytes, held_costs((*some.stages,), name, COSTS, PIECES))) for name in ("a", "b", "c")
    )
    fixed = LIBRARIES_BYTES + RECORD_BYTES * BLOCKS + files
    assert spared(cluster("a", "b", "c", disk=fixed + 1000), 3).divisions == ()
    for room in (3_500_000, 6_000_000):
        tight = spared(cluster("a", "b", "c", disk=fixed + room), 3, Spare.ALL)
        for name in ("a", "b", "c"):
            assert sum(map(file_bytes, held_costs(tight.divisions, name, COSTS, PIECES))) <= room
    assert tight.divisions != ()


# --- the runtime's search beside all that there could be -----------------------------------------------------------


def everything(groups: Sequence[StageRecord], workers: Sequence[str]) -> Iterator[tuple[StageRecord, ...]]:
    """All stages with the head at both ends, each worker once at most, and one group at most."""
    yield (StageRecord.on("h", 0, BLOCKS),)
    choices: list[tuple[tuple[object, ...], ...]] = []
    for group in (None, *groups):
        left = [name for name in workers if group is None or name not in group.devices]
        own = [] if group is None else [group]
        for count in range(len(left) + 1):
            for names in combinations(left, count):
                choices += permutations([*own, *names])
    for units in dict.fromkeys(choices):
        for cuts in combinations(range(1, BLOCKS), len(units) + 1) if units else ():
            middle = [
                StageRecord.on(str(unit), start, stop) if isinstance(unit, str)
                else replace_blocks(unit, start, stop)
                for unit, start, stop in zip(units, cuts, cuts[1:], strict=False)
            ]  # fmt: skip
            yield StageRecord.on("h", 0, cuts[0]), *middle, StageRecord.on("h", cuts[-1], BLOCKS)


def replace_blocks(stage: object, start: int, stop: int) -> StageRecord:
    assert isinstance(stage, StageRecord)
    fields = (stage.devices, stage.shares, (start, stop), 0, stage.all_reduce, stage.root, stage.division)
    return StageRecord(*fields)


WITH_GROUP = {1, 2, 3, 6, 7, 8, 9, 11}  # seeds where a group is best


@pytest.mark.parametrize("seed", range(12))
def test_the_best_of_all_that_can_be_is_found(seed: int) -> None:
    chance, names = Random(seed), ["a", "b", "c"]
    kinds = list(AllReduceKind)
    groups = [
        Stage(("a", "b"), (0.5, 0.5), *INNER, 0, chance.choice(kinds)),
        Stage(("a", "b"), (0.3, 0.7), *INNER, 0, chance.choice(kinds), 0, 1),
        Stage(("b", "c"), (0.6, 0.4), *INNER, 0, chance.choice(kinds), 0, 2),
        Stage(("a", "b", "c"), (0.4, 0.3, 0.3), 2, BLOCKS - 2, 0, chance.choice(kinds), 1, 3),
    ]
    given = cluster(*names, memory=chance.choice([3_000_000, 5_000_000, 50_000_000]))
    given = replace(given, devices=(replace(given.devices[0], memory_bytes=50_000_000), *given.devices[1:]))
    held = {"h": range(BLOCKS), **{name: range(1, BLOCKS - 1) for name in names}}
    known = envelope(held, COSTS, given, (), PIECES, groups)
    pairs = permutations(["h", *names], 2)
    rates = Rates(
        {name: chance.choice([0.5, 1.0, 2.0, 5.0]) for name in names},
        {pair: LinkRate(chance.choice([1e-5, 1e-4, 1e-3]), 1e8) for pair in pairs},
    )
    placement = Placement(with_groups(GRAPH, groups), known, "h", OPTIONS.shapes, rates)
    found = placement.best()
    assert found is not None
    assert placement.faults(found) == []
    all_ = [s for s in everything(records(groups), names) if not placement.faults(s)]
    least = min(map(placement.predict, all_))
    assert picoseconds(placement.predict(found)) <= picoseconds(least) + 100
    assert any(len(stage.devices) > 1 for stage in found) == (seed in WITH_GROUP)
    # From stages that run: what each takes by the end of the open sequences, the change counted.
    before, lost = records((Stage.on("h", 0, 1), groups[1], Stage.on("h", BLOCKS - 1, BLOCKS))), {"a"}
    left = replace(placement, alive={"h", "b", "c"})
    after = left.best(before, [40], 0.0, lost)
    assert after is not None
    least = min(left.predict(s) for s in all_ if not left.faults(s))
    assert picoseconds(left.predict(after)) <= picoseconds(least) + 100
