"""Spares: what is held answers what happens as well as anything that memory and disks leave room for."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest

from llcompile.bundle import graph_record
from llcompile.ir.cluster import Cluster, Device, Link
from llcompile.ir.errors import CompileError
from llcompile.ir.plan import Plan
from llcompile.partition import plan, with_spares
from llcompile.partition.brute_force import candidates
from llcompile.partition.disk import LIBRARIES_BYTES, RECORD_BYTES, file_bytes
from llcompile.partition.holding import LEAST_GAIN, SLACK
from llcompile.partition.problem import Problem
from llcompile.partition.scenarios import Placed, Scenario, blocks_of, could_run, fits, scenarios
from llcompile.partition.search import found_plan
from llcompile.partition.spares import Spare, Spares, choose_spares
from llrun.schema import MoveEvent
from tests.unit.partition.cases import OPTIONS, Case, chain, cost, device
from tests.unit.partition.graphs import layered

LINK = Link(1e7, 1e-5)
Hold = dict[str, frozenset[int]]
Score = tuple[float, float, float, float]  # losses survived, time saved, slowness after losses, bytes


def made(case: Case) -> Plan:
    return plan(case.costs, case.flows, case.cluster, case.options)


def chosen(case: Case, spare: Spare = Spare.AUTO) -> Spares:
    return choose_spares(made(case), case.costs, case.flows, case.cluster, case.options, spare)


def held(case: Case) -> Plan:
    return with_spares(
        made(case),
        case.costs,
        case.flows,
        case.cluster,
        case.options,
        graph_record(layered((len(case.costs) - 2) // 2)),
        Spare.AUTO,
    )


def small_case(seed: int) -> Case | None:
    """A head and two workers, five blocks, some bounds of memory and disk; None where there is no plan."""
    r = random.Random(seed)
    costs = tuple(cost(b, r.choice([4000, 8000]), r.choice([0, 1000])) for b in range(5))
    total = sum(file_bytes(c) for c in costs)

    def one(name: str) -> Device:
        memory = (
            int(sum(c.weights_bytes + c.cache_bytes for c in costs) * r.choice([0.5, 0.7, 1.0, 1.5])) + 5000
        )
        bound = r.choice([None, None, 0.5, 0.7, 0.9])
        disk = None if bound is None else LIBRARIES_BYTES + 5 * RECORD_BYTES + int(total * bound)
        rate = r.choice([1e6, 2e6, 4e6])
        return replace(device(name, memory, rate * 10, rate), disk_bytes=disk)

    case = Case(costs, chain(5), Cluster("h", tuple(map(one, "hab")), LINK, {}), OPTIONS)
    try:
        made(case)
    except CompileError:
        return None
    return case


def holdings(case: Case, must: Hold) -> Iterator[Hold]:
    """Every set of blocks on every device that the disks have room for, `must` included."""
    problem = Problem(case.costs, case.flows, case.cluster, case.options)
    ways = []
    for number, d in enumerate(problem.devices):
        could = sorted({*could_run(problem, number)} - must[d.name])
        sets = [must[d.name] | {b for b, there in zip(could, picked, strict=True) if there}
                for picked in product((0, 1), repeat=len(could))]  # fmt: skip
        ways.append([(d.name, held) for held in sets if size(case, held) <= problem.disk[number]])
    return (dict(way) for way in product(*ways))


def size(case: Case, held: frozenset[int]) -> int:
    return sum(file_bytes(case.costs[b]) for b in held)


def score(case: Case, tpot_s: float, answers: list[tuple[Scenario, list[Placed]]], held: Hold) -> Score:
    """What `held` is worth, from the definitions."""
    survived = saved = slowness = 0.0
    for scenario, placed in answers:
        times = [p.tpot_s for p in placed if all(set(s.blocks) <= held[s.lead] for s in p.stages)]
        if scenario.event is MoveEvent.LOST and times:
            survived, slowness = survived + 1, slowness + min(times) / tpot_s
        if scenario.event is MoveEvent.HALF and times:
            gain = 1 - min(times) / scenario.stay_s
            saved += gain if gain >= LEAST_GAIN else 0.0
    return survived, saved, slowness, float(sum(size(case, blocks) for blocks in held.values()))


def best(scores: list[Score]) -> Score:
    """What the aims, one after the other, make possible.

    Most survived, least saved and most slowness that will do, least bytes.
    """
    left = [s for s in scores if s[0] == max(s[0] for s in scores)]
    least_saved = max(s[1] for s in left) * (1 - SLACK) - 1e-8
    left = [s for s in left if s[1] >= least_saved]
    most_slow = min(s[2] for s in left) * (1 + SLACK) + 1e-8
    left = [s for s in left if s[2] <= most_slow]
    return left[0][0], least_saved, most_slow, min(s[3] for s in left)


@pytest.mark.parametrize("part", range(4))
def test_spares_are_those_that_enumeration_finds(part: int) -> None:
    bounded = survived = 0
    for seed in range(part, 80, 4):
        case = small_case(seed)
        if case is None:
            continue
        planned = made(case)
        problem = Problem(case.costs, case.flows, case.cluster, case.options)
        answers = []
        for s in scenarios(problem, planned.stages):
            every = [c for c in candidates(5, s.problem.cluster, s.problem.options)
                     if c != planned.stages and fits(s, c)]  # fmt: skip
            answers.append((s, [Placed(c, found_plan(s.problem, c).figures.tpot_s) for c in every]))
        must = {d.name: frozenset(blocks_of(d.name, planned.stages)) for d in case.cluster.devices}
        expected = best([score(case, planned.tpot_s, answers, held) for held in holdings(case, must)])
        spares = chosen(case)
        held = {d.name: frozenset(spares.held.get(d.name, ())) for d in case.cluster.devices}
        survive, saved, slowness, disk = score(case, planned.tpot_s, answers, held)
        assert (survive, disk) == (expected[0], expected[3]), seed
        assert saved >= expected[1], seed
        assert slowness <= expected[2], seed
        for number, d in enumerate(problem.devices):
            assert size(case, held[d.name]) <= problem.disk[number], seed
            assert must[d.name] <= held[d.name]
        free = replace(case, cluster=boundless(case.cluster))
        if made(free).stages == planned.stages:
            bounded += chosen(free).held != spares.held
        survived += int(survive > 0)
    assert bounded
    assert survived


def boundless(cluster: Cluster) -> Cluster:
    return replace(cluster, devices=tuple(replace(d, disk_bytes=None) for d in cluster.devices))


# --- written cases -------------------------------------------------------------------------------------------------


def written(*devices: Device, blocks: int = 12) -> Case:
    costs = tuple(cost(b, 100_000) for b in range(blocks))
    return Case(costs, chain(blocks), Cluster("h", devices, LINK, {}), OPTIONS)


def disk_for(count: int, blocks: int = 12) -> int:
    """`disk_bytes` for so many blocks."""
    return LIBRARIES_BYTES + RECORD_BYTES * blocks + count * file_bytes(cost(0, 100_000))


THREE = (device("h", 500_000), device("a", 900_000), device("b", 900_000))


def test_every_loss_is_survived_where_memory_allows_it() -> None:
    case = written(*THREE)
    spares = chosen(case)
    losses = [s for s, _ in spares.answers if s.event is MoveEvent.LOST]
    used = {stage.lead for stage in made(case).stages} - {"h"}
    assert {s.device for s in losses} == used
    for scenario in losses:
        assert any(placed_within(p, spares) for s, placed in spares.answers if s is scenario for p in placed)


def placed_within(placed: Placed, spares: Spares) -> bool:
    return all(set(stage.blocks) <= set(spares.held.get(stage.lead, ())) for stage in placed.stages)


def test_none_holds_what_runs_and_all_holds_what_fits() -> None:
    case = written(*THREE)
    run = {d.name: blocks_of(d.name, made(case).stages) for d in THREE}
    assert chosen(case, Spare.NONE).held == {name: blocks for name, blocks in run.items() if blocks}
    everything = chosen(case, Spare.ALL).held
    assert everything == {"h": tuple(range(12)), "a": tuple(range(1, 11)), "b": tuple(range(1, 11))}


def test_disks_bound_all() -> None:
    devices = (THREE[0], replace(THREE[1], disk_bytes=disk_for(9)), replace(THREE[2], disk_bytes=disk_for(8)))
    case = written(*devices)
    held = chosen(case, Spare.ALL).held
    assert (len(held["a"]), len(held["b"]), len(held["h"])) == (9, 8, 12)
    survived = [s.device for s, placed in chosen(case).answers if s.event is MoveEvent.LOST
                and any(placed_within(p, chosen(case, Spare.ALL)) for p in placed)]  # fmt: skip
    assert survived == [s.device for s, placed in chosen(case).answers if s.event is MoveEvent.LOST
                        and any(placed_within(p, chosen(case)) for p in placed)]  # fmt: skip


def test_device_that_stands_by_holds_all_that_fits_whatever_is_asked() -> None:
    standing = replace(device("s", 900_000), standby=True)
    case = written(*THREE, standing)
    for spare in Spare:
        assert chosen(case, spare).held["s"] == tuple(range(1, 11))
    tight = written(*THREE, replace(standing, disk_bytes=disk_for(4)))
    assert len(chosen(tight).held["s"]) == 4
    assert len(chosen(tight, Spare.NONE).held["s"]) == 4
    empty = written(*THREE, replace(standing, disk_bytes=1000))
    planned = held(empty)
    assert "s" not in planned.held
    assert planned.unused["s"].endswith("but memory_bytes or disk_bytes leave no room for a single block")


def test_device_that_stands_by_with_little_disk_takes_the_place_of_one_that_may_be_lost() -> None:
    """Its disk holds three blocks: those of the only worker, which nobody else has room for."""
    devices = (device("h", 950_000), device("a", 500_000, 1e9, 1e8))
    case = written(*devices, replace(device("s", 500_000), standby=True, disk_bytes=disk_for(3)))
    run = blocks_of("a", made(case).stages)
    assert len(run) == 3
    assert chosen(case).held["s"] == run
    assert chosen(case, Spare.NONE).held["s"] == run


def test_device_that_the_plan_leaves_out_may_hold_spares() -> None:
    devices = (device("h", 700_000), device("a", 900_000), device("slow", 900_000, 1e8, 1e7))
    case = written(*devices)
    planned = held(case)
    assert "slow" in planned.unused
    assert set(planned.spares["slow"]) <= set(range(1, 11))
    assert planned.held["slow"] == planned.spares["slow"]
    assert all(
        not set(planned.spares[name]) & set(blocks_of(name, planned.stages)) for name in planned.spares
    )


def test_eight_devices_take_moderate_time_and_survive_all_losses() -> None:
    devices = tuple(
        device(n, 2_300_000, (1 + i % 3) * 1e10, (1 + i % 3) * 1e9) for i, n in enumerate("habcdefg")
    )
    case = written(*devices, blocks=81)
    spares = chosen(case)
    losses = [(s, placed) for s, placed in spares.answers if s.event is MoveEvent.LOST]
    assert losses
    assert all(any(placed_within(p, spares) for p in placed) for _, placed in losses)


def test_same_input_same_spares() -> None:
    case = written(*THREE)
    assert chosen(case) == chosen(case)
