"""Groups: the planner finds what enumeration finds, says what it looked at, and refuses what cannot be."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from llcompile.ir.cluster import Cluster, Link
from llcompile.ir.errors import INFEASIBLE, USAGE, CompileError
from llcompile.ir.plan import Plan
from llcompile.partition import Pin, kept_pins, plan, resolve
from llcompile.partition.brute_force import Sharing, brute_force
from llcompile.partition.check import check_plan
from llcompile.partition.groupings import sets_of
from llcompile.partition.options import NO_GROUPS, parse_tensor_parallel
from llcompile.partition.problem import Problem
from llcompile.partition.shares import splits
from llrun.schema import PlanStatus
from tests.unit.partition.cases import OPTIONS, Case, chain, cost, device, disk_case, random_case
from tests.unit.partition.cut import linear

CLOSE = 1e-6


def grouped_case(seed: int) -> Case:
    """A random case with at least two devices and three blocks; links that are quick at times, so that groups pay."""
    r = random.Random(seed)
    for number in range(seed * 100, seed * 100 + 100):
        case = disk_case(number) if r.random() < 0.2 else random_case(number)
        if len(case.cluster.devices) > 1 and len(case.costs) > 2:
            break
    if r.random() < 0.7:
        roomy = tuple(replace(d, memory_bytes=d.memory_bytes + 30_000) for d in case.cluster.devices)
        case = replace(case, cluster=replace(case.cluster, devices=roomy))
    if r.random() < 0.6:
        quick = Link(r.choice([1e8, 1e9]), r.choice([1e-7, 1e-6]))
        case = replace(case, cluster=replace(case.cluster, default_link=quick, links={}))
    # With --use-all there are no groups unless they are asked for.
    return replace(case, options=replace(case.options, use_all=case.options.use_all and seed % 4 == 0))


def sharings(case: Case) -> Iterator[Sharing]:
    """The sharings that the planner looks at."""
    pieces = linear(case.costs)
    problem = Problem(case.costs, case.flows, case.cluster, case.options, pieces)
    for names in sets_of(problem, case.options.tensor_parallel)[0]:
        yield from ((names, shares) for shares in splits(problem, names))


def made(case: Case) -> Plan | None:
    """The planner's plan; None when it refuses because nothing fits."""
    pieces = linear(case.costs)
    try:
        found = plan(case.costs, case.flows, case.cluster, case.options, pieces)
    except CompileError as error:
        if (error.code, error.exit_code) != ("P201", INFEASIBLE):
            raise
        return None
    assert check_plan(found, case.costs, case.flows, case.cluster, case.options, pieces) == []
    return found


def compared(case: Case, seed: int) -> Plan | None:
    """The plan: none better than enumeration's, its bound a true one, and equal to it where it is proven."""
    expected = brute_force(
        case.costs, case.flows, case.cluster, case.options, linear(case.costs), [*sharings(case)]
    )
    found = made(case)
    assert (found is None) == (expected is None), seed
    if found is None or expected is None:
        return None
    assert found.objective >= expected[0] * (1 - CLOSE), seed
    assert found.bound <= expected[0] * (1 + CLOSE), seed
    if found.status is PlanStatus.OPTIMAL:
        assert found.objective == pytest.approx(expected[0], rel=CLOSE), seed
    return found


@pytest.mark.parametrize("part", range(4))
def test_plan_equals_enumeration(part: int) -> None:
    plans = [compared(grouped_case(seed), seed) for seed in range(12 * part, 12 * part + 12)]
    found = [each for each in plans if each]
    assert sum(any(stage.is_group for stage in each.stages) for each in found) > 1
    assert sum(each.status is PlanStatus.OPTIMAL for each in found) >= len(found) - 1


@pytest.mark.parametrize("part", range(2))
def test_group_that_was_asked_for_equals_enumeration(part: int) -> None:
    found = 0
    for seed in range(100 + part, 140, 2):
        case = grouped_case(seed)
        wishes = replace(case.options, pins=(), use_all=False, tensor_parallel=2 + seed % 2)
        if len(case.cluster.devices) >= (wishes.tensor_parallel or 0):
            each = compared(replace(case, options=wishes), seed)
            found += bool(each)
            assert each is None or [len(stage.devices) for stage in each.stages] == [
                1,
                wishes.tensor_parallel,
                1,
            ]
            assert each is None or each.status is PlanStatus.OPTIMAL
    assert found > 3


def test_saved_problem_has_the_same_optimum() -> None:
    """That of the problem in which the winner's group stands for its devices."""
    looked = 0
    for seed in range(200, 220):
        found = made(grouped_case(seed))
        if found and found.status is PlanStatus.OPTIMAL and any(stage.is_group for stage in found.stages):
            status, objective = resolve(found.problem)
            assert status == "optimal"
            assert objective == pytest.approx(found.objective, rel=CLOSE), seed
            looked += 1
    assert looked > 3


# --- what it does with what it is told -----------------------------------------------------------------------------

COSTS = tuple(cost(b, 100_000, 3000 if 0 < b < 13 and b % 2 else 0) for b in range(14))
FLOWS = chain(14)
PIECES = linear(COSTS)


def cluster(latency_s: float, *memories: int, rates: tuple[float, ...] = (1e8, 1e8, 1e8, 1e8)) -> Cluster:
    devices = tuple(
        device(name, memory, rate * 10, rate)
        for name, memory, rate in zip("habc", memories, rates, strict=False)
    )
    return Cluster("h", devices, Link(1e8, latency_s), {})


def test_latency_decides_between_pipeline_and_group() -> None:
    """A token computes for 14 ms in all; two halves save at most 6, and take 12 sums."""
    roomy = (10**7, 10**7)
    near = plan(COSTS, FLOWS, cluster(1e-5, *roomy), OPTIONS, PIECES)
    assert [stage.devices for stage in near.stages] == [("h",), ("h", "a"), ("h",)]
    assert near.stages[1].shares == (0.5, 0.5)
    assert near.unused == {}
    far = plan(COSTS, FLOWS, cluster(5e-3, *roomy), OPTIONS, PIECES)
    assert not any(stage.is_group for stage in far.stages)
    off = plan(COSTS, FLOWS, cluster(1e-5, *roomy), replace(OPTIONS, tensor_parallel=NO_GROUPS), PIECES)
    assert not any(stage.is_group for stage in off.stages)
    assert near.tpot_s < 0.7 * off.tpot_s
    assert off.notes == ()


def test_a_block_of_its_own_for_each_device_leaves_none_to_groups() -> None:
    wishes = replace(OPTIONS, use_all=True)
    found = plan(COSTS, FLOWS, cluster(1e-5, 10**7, 10**7, 10**7), wishes, PIECES)
    assert len(found.stages) == 4
    assert not any(stage.is_group for stage in found.stages)


def test_notes_say_what_was_looked_at_and_what_it_brings() -> None:
    found = plan(COSTS, FLOWS, cluster(1e-5, 10**7, 10**7, 10**7), OPTIONS, PIECES)
    first, second = found.notes
    assert first.startswith("groups looked at: all 3 sets of devices in 3 ways ")
    assert first.endswith("a plan has one group at most")
    assert second.startswith(
        "with a group of h 33%, a 33%, b 33% (direct) a request of 512+128 tokens takes "
    )
    assert "; without a group a request of 512+128 tokens takes " in second


def test_shares_follow_speed_and_memory() -> None:
    quick = plan(COSTS, FLOWS, cluster(1e-6, 10**7, 10**7, rates=(3e8, 1e8)), OPTIONS, PIECES)
    assert quick.stages[1].shares == (0.75, 0.25)
    # The head may hold its two ends and six blocks' worth: half of twelve, where its speed would be worth nine.
    tight = plan(COSTS, FLOWS, cluster(1e-6, 820_000, 10**7, rates=(3e8, 1e8)), OPTIONS, PIECES)
    assert tight.stages[1].devices == ("h", "a")
    assert 0.4 < tight.stages[1].shares[0] < 0.52
    assert 0.95 < tight.devices["h"].peak_bytes / 820_000 <= 1


def test_block_too_large_for_any_device_fits_a_group() -> None:
    costs = (COSTS[0], cost(1, 600_000), *COSTS[2:])
    small = cluster(1e-3, 500_000, 500_000, 500_000, 500_000)
    with pytest.raises(CompileError, match="block 1 needs 586 KiB, the largest device"):
        plan(costs, FLOWS, small, OPTIONS)
    found = plan(costs, FLOWS, small, OPTIONS, linear(costs))
    group = next(stage for stage in found.stages if stage.is_group)
    assert 1 in group.blocks
    assert found.notes[1].endswith("; without a group nothing fits")


def test_devices_left_out_are_told_why_in_numbers() -> None:
    found = plan(COSTS, FLOWS, cluster(1e-5, 10**7, 10**7, 10**7, rates=(1e8, 1e8, 1e6)), OPTIONS, PIECES)
    assert list(found.unused) == ["b"]
    assert found.unused["b"].startswith("would slow the others down: a request of 512+128 tokens takes ")


def test_layers_that_the_head_keeps_are_not_cut() -> None:
    wishes = replace(OPTIONS, pins=kept_pins(2, COSTS, "h"))
    for wish in (None, 2):
        given = replace(wishes, tensor_parallel=wish)
        found = plan(COSTS, FLOWS, cluster(1e-6, 10**7, 10**7), given, PIECES)
        assert [(stage.start, stage.stop) for stage in found.stages if stage.is_group] == [(5, 9)]


def test_pinned_blocks_are_not_cut_and_their_device_is_in_no_group() -> None:
    wishes = replace(OPTIONS, pins=(Pin(3, 4, "b"),))
    found = plan(COSTS, FLOWS, cluster(1e-6, 10**7, 10**7, 10**7), wishes, PIECES)
    assert found.stage_of(3).devices == ("b",)
    assert all("b" not in stage.devices for stage in found.stages if stage.is_group)


def test_of_equal_devices_only_how_many_is_looked_at() -> None:
    same = Cluster("h", tuple(device(n) for n in ("h", *"abcdefgi")), Link(1e8, 1e-5), {})
    sets, every = sets_of(Problem(COSTS, FLOWS, same, OPTIONS, PIECES))
    assert every
    assert sorted(map(len, sets)) == sorted([*range(2, 9), *range(2, 10)])
    unequal = replace(same, devices=tuple(device(d.name, 10**8 + i) for i, d in enumerate(same.devices)))
    sets, every = sets_of(Problem(COSTS, FLOWS, unequal, OPTIONS, PIECES))
    assert not every
    assert {len(each) for each in sets} == {*range(2, 10)}
    assert len(set(sets)) == len(sets)


def test_time_that_runs_out_still_gives_a_plan_and_a_true_bound() -> None:
    devices = tuple(device(n, 700_000, 1e9 * (i + 1), 1e8 * (i + 1)) for i, n in enumerate("habcd"))
    five = Cluster("h", devices, Link(1e8, 1e-5), {})
    slow = plan(COSTS, FLOWS, five, OPTIONS, PIECES)
    quick = plan(COSTS, FLOWS, five, replace(OPTIONS, time_limit_s=1e-3), PIECES)
    assert quick.bound <= slow.objective * (1 + CLOSE)
    assert quick.objective >= slow.objective * (1 - CLOSE)


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "wish"), [("auto", None), ("off", NO_GROUPS), ("2", 2), ("16", 16)])
def test_wish_is_read(text: str, wish: int | None) -> None:
    assert parse_tensor_parallel(text) == wish


@pytest.mark.parametrize("text", ["", "1", "0", "-2", "two", "2.0", "٣", "99999", "on"])
def test_other_wishes_are_refused(text: str) -> None:
    with pytest.raises(CompileError) as caught:
        parse_tensor_parallel(text)
    assert (caught.value.code, caught.value.exit_code) == ("P217", USAGE)
    assert "give auto, off, or a number of devices" in caught.value.message


@pytest.mark.parametrize(
    ("wishes", "code", "exit_code", "words"),
    [
        (
            {"tensor_parallel": 4},
            "P217",
            USAGE,
            "--tensor-parallel 4: 3 devices are at work. Use --tensor-parallel auto",
        ),
        (
            {"tensor_parallel": 2, "pins": (Pin(3, 4, "a"),)},
            "P213",
            USAGE,
            "--tensor-parallel 2 and --pin 3:4=a: ",
        ),
        ({"tensor_parallel": 2, "use_all": True}, None, None, ""),
        (
            {"tensor_parallel": 3},
            "P201",
            INFEASIBLE,
            "of the groups of 3 devices h, a, b comes nearest, and a would need",
        ),
    ],
)
def test_groups_that_cannot_be_are_refused(
    wishes: dict[str, object], code: str | None, exit_code: int | None, words: str
) -> None:
    memory = 300_000 if code == "P201" else 10**7
    given = cluster(1e-5, memory, memory, memory)
    if code is None:
        assert plan(COSTS, FLOWS, given, replace(OPTIONS, **wishes), PIECES).unused == {}  # type: ignore[arg-type]
        return
    with pytest.raises(CompileError) as caught:
        plan(COSTS, FLOWS, given, replace(OPTIONS, **wishes), PIECES)  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.exit_code) == (code, exit_code)
    assert words in caught.value.message


def test_blocks_that_cannot_be_cut_are_refused_or_left_alone() -> None:
    uncut = linear(COSTS, uncut=range(14))
    given = cluster(1e-6, 10**7, 10**7)
    assert plan(COSTS, FLOWS, given, OPTIONS, uncut).notes[1].startswith("no group fits or can be cut")
    with pytest.raises(CompileError) as caught:
        plan(COSTS, FLOWS, given, replace(OPTIONS, tensor_parallel=2), uncut)
    assert (caught.value.code, caught.value.exit_code) == ("P217", USAGE)
    assert "the blocks of this model cannot be cut for 2 devices" in caught.value.message
    part = plan(COSTS, FLOWS, given, replace(OPTIONS, prompt_tokens=16), linear(COSTS, uncut=(6,)))
    assert [(s.start, s.stop) for s in part.stages if s.is_group] in ([(1, 6)], [(7, 13)])
