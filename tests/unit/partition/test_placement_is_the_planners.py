"""What a device works out of its slice is what the planner says, and its best is what a full look finds."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from llcompile.bundle.records import stage_records
from llcompile.ir.cluster import Cluster, Link
from llcompile.ir.plan import Flow
from llcompile.partition.brute_force import candidates
from llcompile.partition.evaluate import evaluate, memory
from llrun.programs.placement import LinkRate, Placement, Rates, Stages
from llrun.programs.rated import owner_of
from tests.unit.partition.cases import OPTIONS, Case, cost, device, random_case, tight_case
from tests.unit.partition.placed import envelope_of, graph_of

SEEDS = range(250)


def small_case(seed: int) -> Case:
    """Without wishes; a row of a tensor is what the planner has as its bytes for one token."""
    case = (tight_case, random_case, scattered_case, scattered_case)[seed % 4](seed)
    chunk = case.options.shapes.chunk
    flows = tuple(replace(flow, prefill_bytes=chunk * flow.decode_bytes) for flow in case.flows)
    return replace(case, flows=flows, options=replace(OPTIONS, prompt_tokens=48))


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


@pytest.mark.parametrize("seed", SEEDS[:60])
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


@pytest.mark.parametrize("seed", SEEDS[:120])
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
