"""What a device works out of its slice is what the planner says, and its best is what a full look finds."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, groupby, pairwise
from math import inf

import msgspec
import pytest

from llcompile.bundle.records import stage_records
from llcompile.ir.cluster import Cluster, Link
from llcompile.ir.plan import Flow, Stage
from llcompile.partition.brute_force import candidates
from llcompile.partition.evaluate import evaluate, memory
from llrun.programs.placement import Cost, LinkRate, Placement, Rates, Stages
from llrun.programs.rated import owner_of
from llrun.programs.search import EXACT_WORKERS
from llrun.schema import StageRecord
from tests.unit.partition.cases import OPTIONS, Case, chain, cost, device, random_case, tight_case
from tests.unit.partition.placed import envelope_of, graph_of

SEEDS = range(160)


def small_case(seed: int) -> Case:
    """Without wishes; a row of a tensor is what the planner has as its bytes for one token."""
    case = (tight_case, random_case, scattered_case, scattered_case)[seed % 4](seed)
    chunk = case.options.shapes.chunk
    flows = tuple(replace(flow, prefill_bytes=chunk * flow.decode_bytes) for flow in case.flows)
    costs = tuple(replace(each, last_row_only=False) for each in case.costs)
    return replace(case, costs=costs, flows=flows, options=replace(OPTIONS, prompt_tokens=48))


def scattered_case(seed: int) -> Case:
    """Three workers, tensors that skip blocks, links of all kinds, and no device with room for all."""
    r = random.Random(seed)
    blocks = r.randint(5, 8)
    costs = tuple(cost(b, r.choice([5000, 20000]), r.choice([0, 3000])) for b in range(blocks))
    total = sum(c.weights_bytes + c.cache_bytes for c in costs)
    devices = [
        device(f"d{i}", int(total * r.uniform(0.35, 0.8)) + 9000, 1e9, r.choice([1e8, 1e9])) for i in range(4)
    ]
    links = {
        (a.name, b.name): Link(r.choice([1e5, 1e7]), r.choice([0, 1e-4])) for a in devices for b in devices
    }
    flows = [Flow(f"x{b}", b, (b + 1,), 64, 0) for b in range(blocks - 1)]
    for number in r.sample(range(blocks - 2), 2):
        far = {r.randint(number + 1, blocks - 1) for _ in range(2)}
        flows[number] = replace(flows[number], consumers=tuple(sorted({number + 1, *far})))
    flows.append(Flow("skip", 1, (blocks - 2,), 200, 0))
    flows.sort(key=lambda flow: flow.producer)
    return Case(costs, tuple(flows), Cluster("d0", tuple(devices), Link(1e6, 1e-3), links), OPTIONS)


def held_of(case: Case, r: random.Random) -> dict[str, set[int]]:
    """Random spares; the head mostly has the ends."""
    blocks = range(len(case.costs))
    held = {d.name: {b for b in blocks if r.random() < 0.93} for d in case.cluster.devices}
    if r.random() < 0.95:
        held[case.cluster.head] |= {0, len(case.costs) - 1}
    return held


def placement_of(case: Case, held: dict[str, set[int]] | None = None, **known: object) -> Placement:
    return Placement(
        graph_of(len(case.costs), case.flows),
        envelope_of(case, held),
        case.cluster.head,
        case.options.shapes,
        **known,
    )


@pytest.mark.parametrize("seed", SEEDS[:40])
def test_seconds_and_memory_are_the_planners(seed: int) -> None:
    case = small_case(seed)
    placement, seen = placement_of(case), 0
    for stages in candidates(len(case.costs), case.cluster, case.options):
        records = stage_records(stages)
        figures = evaluate(stages, case.costs, case.flows, case.cluster, case.options)
        assert placement.predict(records) == pytest.approx(figures.tpot_s, rel=1e-12)
        assert placement.chunk_s(records) == pytest.approx(figures.chunk_s, rel=1e-12)
        assert placement.pipeline_s(records, case.options.chunks) == pytest.approx(figures.ttft_s, rel=1e-12)
        assert dict(placement.seconds_of(records)) == pytest.approx(dict(figures.compute_s), rel=1e-12)
        used = memory(stages, case.costs, case.flows, case.cluster)
        short = {name for name in used if used[name].peak > case.cluster.device(name).memory_bytes}
        assert {fault.split()[0] for fault in placement.faults(records)} == short
        seen += 1
    assert seen >= 1


def looked_at(
    case: Case, placement: Placement, value: Callable[[Stages], float], before: Stages = ()
) -> Stages | None:
    """The best of all stages that can be; of equal ones that with fewer."""
    can = [
        records
        for stages in candidates(len(case.costs), case.cluster, case.options)
        if not placement.faults(records := stage_records(stages), before)
    ]
    return min(can, key=lambda stages: (round(value(stages), 11), len(stages)), default=None)


def random_rates(case: Case, r: random.Random) -> Rates:
    names = [device.name for device in case.cluster.devices]
    slow = {name: r.choice([0.5, 1.0, 3.0]) for name in names}
    links = {(a, b): LinkRate(1e-4, 1e6) for a in names for b in names if a != b and r.random() < 0.2}
    return Rates(slow, links)


@pytest.mark.parametrize("seed", SEEDS)
def test_best_is_what_a_full_look_finds(seed: int) -> None:
    case, r = small_case(seed), random.Random(seed)
    alive = {device.name for device in case.cluster.devices if r.random() < 0.9} | {case.cluster.head}
    placement = placement_of(case, held_of(case, r), rates=random_rates(case, r), alive=alive)
    due, found = looked_at(case, placement, placement.predict), placement.best()
    assert (found is None) == (due is None)
    if due is not None and found is not None:
        assert placement.faults(found) == []
        assert placement.predict(found) == pytest.approx(placement.predict(due), rel=1e-9)
        assert len(found) <= len(due)


def moving_s(placement: Placement, before: Stages, after: Stages, held: Sequence[int]) -> float:
    """Seconds of a change in which one block moves after the other."""
    seconds, old, context = 0.0, owner_of(before), placement.shapes.context
    for block, name in owner_of(after).items():
        if old[block] != name:
            each, link = placement.blocks[name][block], placement.link(old[block], name)
            rows = each.cache_bytes * sum(held) // context
            seconds += each.weights_bytes / placement.envelope.devices[name].disk_bytes_per_s
            seconds += rows / link.bytes_per_s
    return seconds


@pytest.mark.parametrize("seed", SEEDS[:80])
def test_best_weighs_the_move_against_what_is_to_come(seed: int) -> None:
    """And keeps old and new blocks in memory at once."""
    case, r = small_case(seed), random.Random(seed)
    before = r.choice([stage_records(s) for s in candidates(len(case.costs), case.cluster, case.options)])
    placement = placement_of(case, rates=random_rates(case, r))
    held, to_come = [40, 3], r.choice([1.0, 30.0, 1000.0])

    def value(stages: Stages) -> float:
        return placement.predict(stages) + moving_s(placement, before, stages, held) / to_come

    due, found = looked_at(case, placement, value, before), placement.best(before, held, to_come)
    assert (found is None) == (due is None)
    if due is not None and found is not None:
        assert placement.faults(found, before) == []
        assert value(found) == pytest.approx(value(due), rel=1e-9)


# --- many workers -------------------------------------------------------------------------------------------------


def crowd(workers: int, fast: int, room: float) -> Case:
    """`fast` of the workers are ten times as fast as the others; each has room for `room` of the model, the head for
    a fifth of it."""
    costs = tuple(cost(b, 20_000, 1000) for b in range(24))
    total = sum(c.weights_bytes + c.cache_bytes for c in costs)
    sizes = [0.2, *[room] * workers]
    devices = tuple(
        device(f"d{i:02}", int(total * size) + 2000, 1e9, 1e9 if i % (workers // fast) == 1 else 1e8)
        for i, size in enumerate(sizes)
    )
    return Case(costs, chain(24), Cluster("d00", devices, Link(1e7, 1e-5), {}), OPTIONS)


def test_of_many_workers_the_fast_ones_are_found() -> None:
    case = crowd(40, 4, 0.3)
    names = [device.name for device in case.cluster.devices if device.memory_bytes_per_s == 1e9]
    placement = placement_of(case)
    few = placement_of(case, alive={*names, "d00"}).best()
    assert len(names) == 4
    assert few is not None
    assert placement.predict(placement.best() or ()) == pytest.approx(placement.predict(few))


def test_more_workers_are_used_than_can_be_searched_exactly() -> None:
    placement = placement_of(crowd(40, 4, 0.05))
    stages = placement.best()
    assert stages is not None
    assert placement.faults(stages) == []
    assert len(stages) > EXACT_WORKERS + 2


def test_head_alone_is_weighed_against_many_workers() -> None:
    case = crowd(40, 4, 0.05)
    head = replace(case.cluster.devices[0], memory_bytes=10**9)
    cluster = replace(case.cluster, devices=(head, *case.cluster.devices[1:]), default_link=Link(1e7, 1.0))
    assert placement_of(replace(case, cluster=cluster)).best() == stage_records([Stage.on("d00", 0, 24)])


# --- what is said of stages that cannot be, and what a change costs ----------------------------------------------


def test_of_equal_plans_the_one_with_fewer_devices_and_the_first_names() -> None:
    costs, flows = tuple(cost(b, 10_000) for b in range(6)), chain(6)
    devices = tuple(device(name, 32_000 if name == "h" else 10**6) for name in ("h", "c", "a", "b"))
    cluster = Cluster("h", devices, Link(1e30, 0.0), {})
    found = placement_of(Case(costs, flows, cluster, OPTIONS)).best()
    assert found is not None
    assert [stage.lead for stage in found] == ["h", "a", "h"]


THREE = Case(
    tuple(cost(b, 10_000, 640) for b in range(6)),
    chain(6),
    Cluster("h", tuple(device(n, 45_000) for n in ("h", "a", "b")), Link(1e6, 1e-3), {}),
    OPTIONS,
)


def plan(text: str) -> tuple[StageRecord, ...]:
    """`hhabbh`: a letter a block."""
    runs = [(name, len([*group])) for name, group in groupby(text)]
    edges = [0, *accumulate(count for _, count in runs)]
    return tuple(StageRecord.on(name, *edge) for (name, _), edge in zip(runs, pairwise(edges), strict=True))


@pytest.mark.parametrize(
    ("stages", "reason"),
    [
        ((), "the stages end at block 0, the model at 6"),
        (plan("haabb"), "the first and the last stage are on h and b, not on the head h"),
        (plan("haabhh"), None),
        (plan("habahh"), "a has 2 stages"),
        (plan("hahbhh"), "h has 3 stages"),
        (plan("haaah"), "the stages end at block 5, the model at 6"),
        ((*plan("haa"), StageRecord.on("h", 4, 6)), "a stage begins at block 4, 3 is next"),
        ((*plan("haa"), StageRecord.on("b", 3, 3), *plan("hhhhhh")), "a stage is empty: 3 to 3"),
        (
            (StageRecord.on("h", 0, 1), StageRecord.on("h", 1, 6)),
            "h has two stages in a row",
        ),
        (plan("hccbhh"), "c is not a device of this bundle"),
        (plan("habbbh"), "b does not hold block 4: it has 0-3"),
        (plan("haaabh"), "b does not hold block 4: it has 0-3"),
        (plan("haaaah"), "a needs 45708 bytes of memory, it has 45000"),
    ],
)
def test_what_cannot_be_is_said(stages: Stages, reason: str | None) -> None:
    held = {"h": set(range(6)), "a": set(range(6)), "b": set(range(4))}
    faults = placement_of(THREE, held).faults(stages)
    assert faults == [] if reason is None else reason in faults


def test_stages_on_what_is_not_there_or_on_several_devices() -> None:
    placement = placement_of(THREE, alive={"h", "a"})
    assert placement.faults(plan("haabbh")) == ["b is not there"]
    both = msgspec.structs.replace(plan("haabbh")[1], devices=("a", "b"))
    stages = (plan("haabbh")[0], both, *plan("haabbh")[2:])
    assert placement.faults(stages) == ["blocks 1 to 2 are not cut for a, b with these shares"]


def test_old_and_new_blocks_are_in_memory_at_once_while_tokens_go_on() -> None:
    placement = placement_of(THREE)
    assert placement.faults(plan("hhaabh")) == []
    # a: 4 x 10,640 with both, 100 of activations, 2,048 of buffers, 1,000 of the runtime
    assert placement.faults(plan("hhaaah"), plan("haaabh")) == [
        "a needs 45708 bytes of memory, with old and new blocks in memory at once, it has 45000"
    ]
    assert placement.best(plan("hhaabh"), lost={"b"}) != placement.best(plan("hhaabh"))


def test_a_change_costs_reading_and_copying() -> None:
    """a gives block 2 to b and takes block 1 from h: 10,000 bytes each at 1e8 a second, read at once; 640 bytes of
    cache at full context (64), 32 tokens in all: 320 bytes a block, over two links, a takes part in both."""
    change = placement_of(THREE).cost(plan("hhaabh"), plan("haabbh"), [20, 12])
    assert (change.disk_bytes, change.cache_bytes) == (20_000, 640)
    assert change.seconds == pytest.approx(10_000 / 1e8 + 2 * (1e-3 + 320 / 1e6))


def test_after_a_loss_all_that_moved_is_computed_again() -> None:
    """b's block 4 goes to h: 20 and 12 tokens are 3 chunks of 16 through blocks 0 to 4."""
    placement = placement_of(THREE)
    after = plan("hhaahh")
    change = placement.cost(plan("hhaabh"), after, [20, 12], frozenset({"b"}))
    assert (change.disk_bytes, change.cache_bytes) == (10_000, 0)
    through = (StageRecord.on("h", 0, 2), StageRecord.on("a", 2, 4), StageRecord.on("h", 4, 5))
    assert change.seconds == pytest.approx(10_000 / 1e8 + placement.pipeline_s(through, 3))
    assert placement.cost(after, after, [20], frozenset({"b"})) == Cost(0.0, 0, 0)


def test_what_nobody_holds_or_no_link_reaches_takes_for_ever() -> None:
    placement = placement_of(THREE, {"h": {0, 5}, "a": {1, 2, 3}, "b": set()})
    assert placement.predict(plan("haaaah")) == inf
    assert placement.best() is None
    cut = Rates({}, {("h", "a"): LinkRate(1e-3, 0.0)})
    assert placement_of(THREE, rates=cut).predict(plan("haabbh")) == inf
    assert {stage.lead for stage in placement_of(THREE, rates=cut).best() or ()} == {"h", "b"}
