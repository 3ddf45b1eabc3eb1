"""The MIP under construction: its columns by what they stand for, and linear expressions over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llcompile.ir.plan import Flow
from llcompile.partition.mip import Mip
from llcompile.partition.problem import HEAD, Problem

Pair = tuple[int, int]


@dataclass
class MipModel:
    problem: Problem
    mip: Mip
    limit: float
    slowest: int = 0
    constant: int = 0
    begin: dict[Pair, int] = field(default_factory=dict)
    end: dict[Pair, int] = field(default_factory=dict)
    move: dict[tuple[int, int, int], int] = field(default_factory=dict)
    hop: dict[tuple[int, int, int], int] = field(default_factory=dict)
    copy: dict[tuple[str, int, int], int] = field(default_factory=dict)
    skip: dict[tuple[str, int, int], int] = field(default_factory=dict)

    def has(self, device: int, block: int) -> dict[int, float]:
        """1 when `block` is on `device`."""
        terms = {self.begin[device, block]: 1.0, self.end[device, block]: -1.0}
        return terms | {self.constant: 1.0} if device == HEAD else terms

    def pairs(self) -> list[Pair]:
        count = range(len(self.problem.devices))
        return [(d, e) for d in count for e in count if d != e]


def add(*parts: Mapping[int, float]) -> dict[int, float]:
    """Sum of linear expressions."""
    total: dict[int, float] = {}
    for part in parts:
        for column, value in part.items():
            total[column] = total.get(column, 0.0) + value
    return total


def scaled(terms: Mapping[int, float], factor: float) -> dict[int, float]:
    return {column: value * factor for column, value in terms.items()}


def flow_key(problem: Problem, flow: Flow) -> str:
    return f"{flow.producer}_{problem.flows.index(flow)}"
