"""From costs, flows and devices to a plan."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from llcompile.ir.cluster import Cluster
from llcompile.ir.plan import BlockCost, DeviceLoad, Flow, Plan, Stage
from llcompile.partition.evaluate import Figures, evaluate, memory
from llcompile.partition.formulation import formulate
from llcompile.partition.mip import to_mps
from llcompile.partition.options import PlanOptions, check_pins
from llcompile.partition.problem import HEAD, Problem
from llcompile.partition.refusal import check_possible, refuse
from llcompile.partition.solver import solve
from llcompile.partition.transmissions import transmissions


def plan(costs: Sequence[BlockCost], flows: Sequence[Flow], cluster: Cluster, options: PlanOptions) -> Plan:
    """The best assignment of blocks to devices: consecutive stages, the first and the last on the head.

    Raises CompileError: P201 (exit 3) when nothing fits, P21x (exit 2) when the pins contradict each other.
    """
    check_pins(options.pins, cluster, len(costs))
    problem = Problem(tuple(costs), tuple(flows), cluster, options)
    check_possible(problem)
    start = time.perf_counter()
    text = to_mps(formulate(problem))
    solution = solve(text, options.time_limit_s, options.gap, options.seed)
    seconds = time.perf_counter() - start
    if not solution.values:
        raise refuse(problem, solution.status, seconds)
    stages = stages_of(problem, solution.values)
    figures = evaluate(stages, costs, flows, cluster, options)
    return Plan(
        status=solution.status,
        objective=figures.objective,
        bound=min(solution.bound, figures.objective),
        gap=max(0.0, figures.objective - solution.bound) / figures.objective,
        solve_s=seconds,
        seed=options.seed,
        ttft_s=figures.ttft_s,
        tpot_s=figures.tpot_s,
        quant=options.quant,
        context=options.context,
        chunk=options.chunk,
        stages=stages,
        devices=device_loads(stages, problem, figures),
        unused={},
        transmissions=transmissions(stages, flows),
        problem=text,
    )


def stages_of(problem: Problem, values: Mapping[str, float]) -> tuple[Stage, ...]:
    """The stages that a solution's steps describe."""
    owners = [_owner(problem, values, block) for block in range(problem.blocks)]
    cuts = [b for b in range(1, problem.blocks) if owners[b] != owners[b - 1]]
    edges = [0, *cuts, problem.blocks]
    names = [problem.devices[owners[start]].name for start in edges[:-1]]
    return tuple(Stage((name,), (1.0,), *edges[i : i + 2]) for i, name in enumerate(names))


def _owner(problem: Problem, values: Mapping[str, float], block: int) -> int:
    def has(device: int) -> float:
        held = values[f"begin_{block}_{device}"] - values[f"end_{block}_{device}"]
        return held + 1 if device == HEAD else held

    return max(range(len(problem.devices)), key=has)


def device_loads(stages: Sequence[Stage], problem: Problem, figures: Figures) -> Mapping[str, DeviceLoad]:
    """Memory and seconds of each device in use, in the cluster's order."""
    used = memory(stages, problem.costs, problem.flows, problem.cluster)
    return {
        device.name: DeviceLoad(
            weights_bytes=used[device.name].weights,
            kv_bytes=used[device.name].cache,
            peak_bytes=used[device.name].peak,
            memory_bytes=device.memory_bytes,
            compute_s=figures.compute_s[device.name],
        )
        for device in problem.cluster.devices
        if device.name in used
    }
