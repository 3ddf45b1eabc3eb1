"""What a solution's columns say: the stages."""

from __future__ import annotations

from collections.abc import Mapping

from llcompile.ir.plan import Stage
from llcompile.partition.problem import HEAD, Problem


def stages_of(problem: Problem, values: Mapping[str, float]) -> tuple[Stage, ...]:
    """The stages that a solution's steps describe."""
    owners = [_owner(problem, values, block) for block in range(problem.blocks)]
    cuts = [b for b in range(1, problem.blocks) if owners[b] != owners[b - 1]]
    edges = [0, *cuts, problem.blocks]
    names = [problem.devices[owners[start]].name for start in edges[:-1]]
    return tuple(Stage.on(name, *edges[i : i + 2]) for i, name in enumerate(names))


def _owner(problem: Problem, values: Mapping[str, float], block: int) -> int:
    def has(device: int) -> float:
        held = values[f"begin_{block}_{device}"] - values[f"end_{block}_{device}"]
        return held + 1 if device == HEAD else held

    return max(range(len(problem.devices)), key=has)
