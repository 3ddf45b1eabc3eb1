"""Planning without subsets of workers: knapsack, local search, relaxation against enumeration, and the time limit."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from llcompile.ir.cluster import Cluster, Link
from llcompile.ir.plan import Flow
from llcompile.partition import many, plan, resolve
from llcompile.partition.brute_force import brute_force
from llcompile.partition.check import check_plan
from llcompile.partition.clock import Clock
from llcompile.partition.formulation import formulate
from llcompile.partition.knapsack import Knapsack, alternates
from llcompile.partition.many import outlook_of
from llcompile.partition.mip import to_mps
from llcompile.partition.orders import Cutter
from llcompile.partition.problem import Problem
from llcompile.partition.relaxation import Relaxation, _simplex
from llcompile.partition.search import search
from llcompile.partition.tables import Tables
from tests.unit.partition.cases import OPTIONS, Case, chain, cost, device, random_case

CLOSE = 1e-6


def alternating_case(seed: int) -> Case:
    """Links alike, two kinds of blocks in turn, the last but one smaller at times; up to four devices."""
    r = random.Random(seed)
    blocks, workers = r.choice([6, 7, 8]), r.randint(1, 3)
    kinds = [
        cost(b, r.choice([4000, 9000, 20000]), r.choice([0, 3000]), r.choice([100, 900])) for b in (0, 1)
    ]
    kinds = [replace(k, decode_flops=k.decode_flops * r.uniform(0.1, 30)) for k in kinds]
    costs = [cost(0, r.choice([1000, 8000])), *(replace(kinds[b % 2], block=b) for b in range(1, blocks - 1))]
    costs.append(cost(blocks - 1, r.choice([1000, 8000])))
    flows = list(chain(blocks, r.choice([16, 400])))
    if r.random() < 0.7:
        costs[-2] = replace(costs[-2], prefill_flops=costs[-2].prefill_flops / 16, activation_bytes=50)
        flows[-2:] = [replace(flow, prefill_bytes=flow.decode_bytes) for flow in flows[-2:]]
    total = sum(c.weights_bytes + c.cache_bytes for c in costs)
    plenty = r.choice([0.5, 0.8, 1.2, 3.0])
    devices = tuple(
        device(
            f"d{i}",
            int(total * plenty * r.uniform(0.2, 1.2)) + 14000,
            r.choice([1e9, 4e9, 1e10]),
            r.choice([1e8, 1e9]),
        )
        for i in range(workers + 1)
    )
    options = replace(
        OPTIONS,
        objective=r.choice(["latency", "throughput"]),
        use_all=r.random() < 0.25,
        prompt_tokens=r.choice([4, 48, 512]),
        new_tokens=r.choice([1, 32]),
        sequences=r.choice([1, 4]),
    )
    link = Link(r.choice([1e6, 1e7, 1e8]), r.choice([1e-6, 1e-5, 1e-3]))
    return Case(tuple(costs), tuple(flows), Cluster("d0", devices, link, {}), options)


def problem_of(case: Case) -> Problem:
    return Problem(case.costs, case.flows, case.cluster, case.options)


@pytest.mark.parametrize("part", range(4))
def test_knapsack_equals_enumeration(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where surpluses beyond 1 are not told apart at first."""
    monkeypatch.setattr("llcompile.partition.knapsack.SPREAD", 1 + part % 2)
    feasible = 0
    for seed in range(part, 120, 4):
        case = alternating_case(seed)
        assert alternates(problem_of(case))
        expected = brute_force(case.costs, case.flows, case.cluster, case.options)
        outlook = search(problem_of(case), 1e-9, Clock(60), Knapsack)
        assert (outlook.best is None) == (expected is None), seed
        if expected is not None and outlook.best is not None:
            feasible += 1
            assert outlook.best.figures.objective == pytest.approx(expected[0], rel=CLOSE), seed
            assert outlook.bound == pytest.approx(expected[0], rel=CLOSE), seed
    assert feasible > 10


def test_knapsack_knows_what_it_does_not_describe() -> None:
    costs, options = tuple(cost(b, 5000 + 100 * (b % 2)) for b in range(12)), OPTIONS
    links = Cluster("h", (device("h"), device("a"), device("b")), Link(1e7, 1e-4), {})
    assert alternates(Problem(costs, chain(12), links, options))
    windows = tuple(replace(c, cache_bytes=100 * (b % 6 == 0)) for b, c in enumerate(costs))
    assert not alternates(Problem(windows, chain(12), links, options))
    one = replace(links, links={("h", "a"): Link(1e6, 1e-4)})
    assert not alternates(Problem(costs, chain(12), one, options))
    skips = (*chain(12), Flow("skip", 2, (4,), 64, 64))
    assert not alternates(Problem(costs, skips, links, options))
    wide = (*chain(12)[:5], replace(chain(12)[5], decode_bytes=65), *chain(12)[6:])
    assert not alternates(Problem(costs, wide, links, options))


def test_relaxation_bounds_every_plan_with_workers() -> None:
    """Plans of enumeration with a slowest device or link within the limits, never below the bound."""
    close = 0
    for seed in range(6000, 6060):
        case = random_case(seed)
        expected = brute_force(case.costs, case.flows, case.cluster, case.options)
        problem = problem_of(case)
        found = Relaxation(Tables(problem)).bound(3 * expected[0] if expected else 1.0, Clock(60), 1.0)[0]
        if expected is None or len(expected[1]) == 1:
            continue
        assert found <= expected[0] * (1 + CLOSE), seed
        close += found > 0.9 * expected[0]
        slowest = many.slowest(problem, many.found_plan(problem, expected[1]).figures)
        above, _ = Relaxation(Tables(problem), slowest).bound(3 * expected[0], Clock(60), 1.0)
        within, _ = Relaxation(Tables(problem, slowest * (1 + 1e-9))).bound(3 * expected[0], Clock(60), 1.0)
        assert max(above, within) <= expected[0] * (1 + CLOSE), seed
    assert close > 7


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_relaxation_pays_for_what_it_relaxes(objective: str) -> None:
    """A fast worker for two blocks that all would go to, a fast head for four of which both stages want as many."""
    devices = (
        device("h", 4 * 5000 + 4000, 1e12, 1e11),
        device("fast", 2 * 5000 + 4000, 1e12, 1e11),
        *(device(name, 2 * 5000 + 4000, 1e9, 1e8 + i * 1e6) for i, name in enumerate("abc")),
    )
    cluster = Cluster("h", devices, Link(1e9, 1e-6), {})
    costs, options = tuple(cost(b, 5000) for b in range(11)), replace(OPTIONS, objective=objective)
    expected = brute_force(costs, chain(11), cluster, options)
    assert expected is not None
    problem = Problem(costs, chain(11), cluster, options)
    found, prices = Relaxation(Tables(problem)).bound(3 * expected[0], Clock(60), 1.0)
    assert 0.7 * expected[0] <= found <= expected[0] * (1 + CLOSE)
    assert prices.uses[1] > 0
    assert prices.memory > 0


def test_prices_stay_finite_where_next_to_nothing_is_violated() -> None:
    """Steps so long that prices lost all their digits ended in a traceback."""
    far = _simplex(np.array([1e20, 3e20, 0.0, 3e20]))
    assert far.tolist() == [0.0, 0.5, 0.0, 0.5]
    near = _simplex(np.array([0.5, 0.75, -1.0]))
    assert near.tolist() == [0.375, 0.625, 0.0]


def test_local_search_finds_what_enumeration_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small cases as if there were too many workers for subsets: plans that hold, mostly the best, true bounds."""
    monkeypatch.setattr(many, "SUBSETS", 0)
    monkeypatch.setattr(many, "KNAPSACK", 99)
    monkeypatch.setattr(many, "SPLITS", 2)
    same = total = 0  # of those without tensors that skip blocks: their cuts are exact
    for seed in range(7000, 7060):
        case = random_case(seed)
        expected = brute_force(case.costs, case.flows, case.cluster, case.options)
        outlook = outlook_of(problem_of(case), 1e-9, Clock(60))
        if expected is None:
            assert outlook.best is None, seed
            continue
        simple = not problem_of(case).long_flows
        total += simple
        assert outlook.bound <= expected[0] * (1 + CLOSE), seed
        if outlook.best is not None:
            assert outlook.best.figures.objective >= expected[0] * (1 - CLOSE), seed
            same += simple and outlook.best.figures.objective <= expected[0] * (1 + CLOSE)
    assert same > 0.9 * total > 10


def test_cuts_of_many_orders_at_once_are_those_of_each() -> None:
    case = alternating_case(1)
    cutter = Cutter(Tables(problem_of(replace(case, cluster=wide_cluster(5)))))
    orders = [(1, 2, 3), (3,), (4, 1), (2, 1, 4, 3), (1,)]
    together = cutter.routes(orders, [1, 2, 1, 1, 3])
    for route in together:
        (single,) = cutter.routes([route.order], [route.stop])
        assert single == route
        stages = many.found_plan(cutter.problem, cutter.stages(route)).stages
        names = [device.name for device in cutter.problem.devices]
        assert [stage.lead for stage in stages] == [names[d] for d in (0, *route.order, 0)]
        assert stages[0].stop == route.stop


# --- many devices ---------------------------------------------------------------------------------------------------


def wide_cluster(count: int, memory: int = 10**9, own_links: bool = False) -> Cluster:
    r = random.Random(count)
    devices = tuple(
        device(f"d{i:02}", memory, r.choice([1e10, 2e10, 4e10]), r.choice([1e9, 2e9, 4e9]))
        for i in range(count)
    )
    names = [d.name for d in devices]
    links = {(a, b): Link(10 ** r.uniform(6, 8), 2e-4) for a in names for b in names if a < b and own_links}
    return Cluster("d00", devices, Link(1e8, 1e-4), links | {(b, a): link for (a, b), link in links.items()})


COSTS = tuple(cost(b, 50_000 if b % 2 else 90_000, 3000 * (b % 2)) for b in range(42))


@pytest.mark.parametrize("count", [17, 32, 64])
def test_equal_devices_one_of_which_suffices(count: int) -> None:
    equal = tuple(device(f"d{i:02}", 10**8, 1e10, 1e9) for i in range(count))
    cluster = Cluster("d00", equal, Link(1e8, 1e-4), {})
    options = replace(OPTIONS, prompt_tokens=16, gap=1e-4)
    made = plan(COSTS, chain(42), cluster, options)
    assert (made.status, [stage.lead for stage in made.stages]) == ("optimal", ["d00"])
    assert made.gap == pytest.approx(0, abs=1e-9)
    assert len(made.unused) == count - 1
    assert all(reason.startswith("would slow the others down: a request") for reason in made.unused.values())


def test_unequal_devices_with_equal_links_are_proven() -> None:
    cluster = wide_cluster(14, 500_000)
    options = replace(OPTIONS, gap=1e-4, time_limit_s=60)
    made = plan(COSTS, chain(42), cluster, options)
    assert made.status == "optimal"
    assert len(made.devices) > 6


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_devices_with_links_of_their_own_get_a_plan_and_a_bound(objective: str) -> None:
    cluster = wide_cluster(12, 450_000, own_links=True)
    options = replace(OPTIONS, objective=objective, gap=0.06, time_limit_s=60)
    costs, flows = COSTS[:26], chain(26)
    made = plan(costs, flows, cluster, options)
    assert check_plan(made, costs, flows, cluster, options) == []
    assert made.status == "optimal"
    assert made.bound > 0.94 * made.objective * (1 - CLOSE)


def test_no_time_at_all_still_gives_a_plan_and_a_true_bound() -> None:
    for cluster in (wide_cluster(20, 400_000), wide_cluster(20, 400_000, own_links=True)):
        hurried = plan(COSTS, chain(42), cluster, replace(OPTIONS, time_limit_s=1e-3))
        patient = plan(COSTS, chain(42), cluster, replace(OPTIONS, time_limit_s=60, gap=0.1))
        assert hurried.bound <= patient.objective * (1 + CLOSE)
        assert patient.bound <= hurried.objective * (1 + CLOSE)


def test_same_input_same_plan_where_time_does_not_run_out() -> None:
    cluster = wide_cluster(11, 10**6, own_links=True)
    costs, flows = (*COSTS[:13], cost(13, 5000)), chain(14)
    options = replace(OPTIONS, time_limit_s=600)
    first, second = (plan(costs, flows, cluster, options) for _ in range(2))
    assert replace(first, solve_s=0.0) == replace(second, solve_s=0.0)


def test_hops_say_the_same_as_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The formulation for many devices, alone, on small cases with links of their own and tensors that skip blocks."""
    monkeypatch.setattr("llcompile.partition.links.MOVES", 0)
    skipping = 0
    for seed in range(8000, 8060):
        case = random_case(seed)
        expected = brute_force(case.costs, case.flows, case.cluster, case.options)
        problem = problem_of(case)
        text = to_mps(formulate(problem))
        status, objective = resolve(text, 60.0, 1e-9)
        assert problem.uniform or " hop_0_0_1 " in text or len(problem.devices) == 1, seed
        if expected is None:
            assert status == "infeasible", seed
            continue
        assert objective == pytest.approx(expected[0], rel=CLOSE), seed
        skipping += bool(problem.long_flows) and len(expected[1]) > 1
    assert skipping > 5


def test_saved_problem_without_copies_says_so_and_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llcompile.partition.links.COPIES", 0)
    told = 0
    for seed in range(8000, 8040):
        case = random_case(seed)
        expected = brute_force(case.costs, case.flows, case.cluster, case.options)
        text = to_mps(formulate(problem_of(case)))
        skips = bool(problem_of(case).long_flows) and len(case.cluster.devices) > 1
        assert ("* a relaxation: what tensors cost that skip blocks is left out" in text) == skips, seed
        if expected is not None:
            _, objective = resolve(text, 60.0, 1e-9)
            assert objective <= expected[0] * (1 + CLOSE), seed
            told += skips and objective < expected[0] * (1 - CLOSE)
    assert told > 3


def test_saved_problem_of_many_devices_has_the_same_optimum() -> None:
    cluster = wide_cluster(11, 300_000)
    costs = tuple(cost(b, 50_000 if b % 2 else 90_000) for b in range(16))
    made = plan(costs, chain(16), cluster, replace(OPTIONS, gap=1e-6))
    status, objective = resolve(made.problem, 60.0, 1e-6)
    assert status == "optimal"
    assert objective == pytest.approx(made.objective, rel=3e-6)
