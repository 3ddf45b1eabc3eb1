"""The MIP finds what enumeration finds: with and without the search that starts it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llcompile.ir.errors import INFEASIBLE, CompileError
from llcompile.partition import plan, resolve
from llcompile.partition.brute_force import brute_force
from llcompile.partition.check import check_plan
from llcompile.partition.clock import Clock
from llcompile.partition.formulation import formulate
from llcompile.partition.mip import to_mps
from llcompile.partition.options import check_pins
from llcompile.partition.problem import Problem
from llcompile.partition.search import search
from llcompile.partition.solver import solve
from tests.unit.partition.cases import Case, disk_case, random_case, tight_case

SEEDS = range(300)
CLOSE = 1e-6


def found(case: Case) -> float | None:
    """The planner's objective; None when it refuses because nothing fits."""
    try:
        result = plan(case.costs, case.flows, case.cluster, case.options)
    except CompileError as error:
        return None if (error.code, error.exit_code) == ("P201", INFEASIBLE) else float("nan")
    assert check_plan(result, case.costs, case.flows, case.cluster, case.options) == []
    return result.objective


@pytest.mark.parametrize("part", range(10))
def test_plan_equals_enumeration(part: int) -> None:
    for seed in SEEDS[part::10]:
        case = random_case(seed)
        expected = brute_force(case.costs, case.flows, case.cluster, case.options)
        objective = found(case)
        if expected is None:
            assert objective is None, seed
        else:
            assert objective == pytest.approx(expected[0], rel=CLOSE), seed


@pytest.mark.parametrize("part", range(5))
def test_models_that_just_fit_the_head(part: int) -> None:
    """Search, MIP, evaluator and enumeration agree on what a head that sends nothing need not hold."""
    stayed = 0
    for seed in range(5000 + part, 5150, 5):
        case = tight_case(seed)
        expected = brute_force(case.costs, case.flows, case.cluster, case.options)
        problem = Problem(case.costs, case.flows, case.cluster, case.options)
        solution = solve(to_mps(formulate(problem)), 60, gap=1e-9)
        objective = found(case)
        if expected is None:
            assert (objective, solution.status) == (None, "infeasible"), seed
            continue
        assert objective == pytest.approx(expected[0], rel=CLOSE), seed
        assert solution.objective == pytest.approx(expected[0], rel=CLOSE), seed
        stayed += len(expected[1]) == 1 and problem.free[0] < problem.needed([(0, problem.blocks)])
    assert stayed > 2


@pytest.mark.parametrize("part", range(5))
def test_bounds_of_disks_hold(part: int) -> None:
    """Search, MIP and enumeration agree on plans that disks leave room for."""
    bound = 0
    for seed in range(6000 + part, 6150, 5):
        case = disk_case(seed)
        expected = brute_force(case.costs, case.flows, case.cluster, case.options)
        boundless = tuple(replace(d, disk_bytes=None) for d in case.cluster.devices)
        free = brute_force(case.costs, case.flows, replace(case.cluster, devices=boundless), case.options)
        solution = solve(
            to_mps(formulate(Problem(case.costs, case.flows, case.cluster, case.options))), 60, gap=1e-9
        )
        objective = found(case)
        bound += free != expected
        if expected is None:
            assert (objective, solution.status) == (None, "infeasible"), seed
            continue
        assert objective == pytest.approx(expected[0], rel=CLOSE), seed
        assert solution.objective == pytest.approx(expected[0], rel=CLOSE), seed
    assert bound > 2


@pytest.mark.parametrize("part", range(5))
def test_mip_alone_equals_enumeration(part: int) -> None:
    """No hint, no limit, no floor: the formulation itself is right, memory and all."""
    for seed in range(1000 + part, 1100, 5):
        case = random_case(seed)
        expected = brute_force(case.costs, case.flows, case.cluster, case.options)
        problem = Problem(case.costs, case.flows, case.cluster, case.options)
        solution = solve(to_mps(formulate(problem)), 60, gap=1e-9)
        if expected is None:
            assert solution.status == "infeasible", seed
        else:
            assert solution.status == "optimal", seed
            assert solution.objective == pytest.approx(expected[0], rel=CLOSE), seed


@pytest.mark.parametrize("rounds", [1, 2, 3, 5])
def test_search_that_is_cut_short_still_bounds(monkeypatch: pytest.MonkeyPatch, rounds: int) -> None:
    monkeypatch.setattr("llcompile.partition.search.ROUNDS", rounds)
    for seed in range(4000, 4100):
        case = random_case(seed)
        expected = brute_force(case.costs, case.flows, case.cluster, case.options)
        outlook = search(Problem(case.costs, case.flows, case.cluster, case.options), 1e-9, Clock(60))
        assert (outlook.best is None) == (expected is None)
        assert expected is None or outlook.bound <= expected[0] * (1 + CLOSE), seed


def test_search_bounds_hold() -> None:
    """The bounds that the MIP takes from the search are true ones, and the search says so when nothing fits."""
    for seed in range(2000, 2300):
        case = random_case(seed)
        expected = brute_force(case.costs, case.flows, case.cluster, case.options)
        problem = Problem(case.costs, case.flows, case.cluster, case.options)
        outlook = search(problem, 1e-9, Clock(60))
        assert outlook.exact
        if expected is None:
            assert outlook.best is None, seed
            continue
        assert outlook.best is not None, seed
        assert outlook.bound <= expected[0] * (1 + CLOSE), seed
        assert outlook.best.figures.objective >= expected[0] * (1 - CLOSE), seed
        if not problem.long_flows:
            assert outlook.best.figures.objective == pytest.approx(expected[0], rel=CLOSE), seed


def test_saved_problem_has_the_same_optimum() -> None:
    for seed in range(3000, 3060):
        case = random_case(seed)
        try:
            result = plan(case.costs, case.flows, case.cluster, case.options)
        except CompileError:
            continue
        status, objective = resolve(result.problem)
        assert status == "optimal"
        assert objective == pytest.approx(result.objective, rel=CLOSE), seed


def test_cases_cover_what_they_should() -> None:
    """The random cases hold feasible and infeasible ones, pins, forced devices, skipping tensors, several stages."""
    cases = [random_case(seed) for seed in SEEDS]
    results = [brute_force(c.costs, c.flows, c.cluster, c.options) for c in cases]
    stages = [len(result[1]) for result in results if result]
    assert results.count(None) > 30
    assert sum(count == 1 for count in stages) > 30
    assert sum(count >= 4 for count in stages) > 20
    assert sum(bool(c.options.pins) for c, result in zip(cases, results, strict=True) if result) > 20
    assert sum(c.options.use_all for c, result in zip(cases, results, strict=True) if result) > 20
    for case in cases:
        check_pins(case.options.pins, case.cluster, len(case.costs))
