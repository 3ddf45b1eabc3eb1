"""Why a device has no block, in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Set

from llcompile.partition.formulation import longest_stages
from llcompile.partition.groups import Group
from llcompile.partition.problem import Problem
from llcompile.partition.refusal import size
from llcompile.partition.search import Found

SAME = 1e-3  # relative difference below which two plans count as equally fast


def reasons(problem: Problem, best: Found, used: Set[str], others: Mapping[str, Found]) -> Mapping[str, str]:
    """The reason for each device of the cluster that is not `used` by `best`, in the cluster's order.

    `others`: the best plans known that use a device. `problem`: of single devices.
    """
    numbers = {device.name: d for d, device in enumerate(problem.devices)}
    return {
        device.name: _reason(problem, numbers[device.name], best, others.get(device.name))
        for device in problem.cluster.devices
        if device.name not in used
    }


def _reason(problem: Problem, device: int, best: Found, other: Found | None) -> str:
    fault = _too_small(problem, device) if other is None else None
    if fault:
        return fault
    if other is None:
        return "no plan that uses it was found in the time given"
    difference = (other.figures.objective - best.figures.objective) / best.figures.objective
    if difference <= SAME:
        return f"brings nothing: {_figures(problem, best, other)}"
    return f"would slow the others down: {_figures(problem, best, other)}"


def _too_small(problem: Problem, device: int) -> str | None:
    """A reason when not even one block fits."""
    if problem.blocks < 3:
        return f"the model has only {problem.blocks} blocks, which the head must hold"
    if longest_stages(problem)[device - 1] > 0:
        return None
    least = min(problem.needed([(b, b + 1)]) for b in range(1, problem.blocks - 1))
    free = max(problem.free[device], 0)
    files, room = problem.least_file, problem.disk[device]
    if least <= free and files > room:
        return f"too little disk: the smallest block's file has {size(files)}, disk_bytes leaves {size(max(room, 0))}"
    return f"too little memory: the smallest block needs {size(least)}, it has {size(free)} free"


def _figures(problem: Problem, without: Found, with_it: Found) -> str:
    """Both plans' figures; the plan with the device is the best one found, not proven to be the best."""
    a, b = without.figures, with_it.figures
    if problem.options.objective == "throughput":
        return f"with it {1 / b.period_s:.3g} tokens a second, without it {1 / a.period_s:.3g}"
    request = f"{problem.options.prompt_tokens}+{problem.options.new_tokens} tokens"
    tokens = f"a token {seconds(b.tpot_s)} against {seconds(a.tpot_s)}"
    return (
        f"a request of {request} takes {seconds(_request(problem, with_it))} with it, "
        f"{seconds(_request(problem, without))} without it ({tokens})"
    )


def request_words(problem: Problem, plan: Found) -> str:
    """What a plan gives of what was asked for: `a request of 512+128 tokens takes 3.2 s, a token 20 ms`."""
    options = problem.options
    if options.objective == "throughput":
        return f"{1 / plan.figures.period_s:.3g} tokens a second come of {options.sequences} sequences"
    request = f"{options.prompt_tokens}+{options.new_tokens} tokens"
    return f"a request of {request} takes {seconds(_request(problem, plan))}, a token {seconds(plan.figures.tpot_s)}"


def group_words(group: Group) -> str:
    """`a group of a 60%, b 40% (direct)`."""
    parts = ", ".join(f"{n} {share:.0%}" for n, share in zip(group.devices, group.shares, strict=True))
    return f"a group of {parts} ({group.all_reduce})"


def _request(problem: Problem, plan: Found) -> float:
    return plan.figures.ttft_s + problem.options.new_tokens * plan.figures.tpot_s


def seconds(value: float) -> str:
    """Seconds for people: 12.3 s, 84.2 ms, 8.1 us."""
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if value >= unit:
            return f"{value / unit:.4g} {name}"
    return f"{value / 1e-6:.4g} us"
