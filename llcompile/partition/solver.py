"""Solving a saved problem: MPS text in, values out. The only place that calls OR-Tools."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from ortools.math_opt.io.python import mps_converter
from ortools.math_opt.python import mathopt

from llcompile.ir.errors import INTERNAL, CompileError
from llcompile.partition.mip import scale_of

_FAILED = "P220"


class SolverStatus(StrEnum):
    """How a solver ended; UNKNOWN: without a solution and without proof that there is none."""

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Solution:
    """What a solver made of a problem: objective and bound in seconds, `values` by column."""

    status: SolverStatus
    objective: float
    bound: float
    values: Mapping[str, float]

    @property
    def gap(self) -> float:
        """Relative difference between objective and bound."""
        return max(0.0, self.objective - self.bound) / max(abs(self.objective), 1e-300)


def solve(
    text: str,
    time_limit_s: float,
    gap: float = 1e-4,
    seed: int = 1,
    hint: Mapping[str, float] | None = None,
) -> Solution:
    """Solve the MPS `text` with SCIP on one thread: same text, seed and hint, same answer, unless time runs out.

    `hint`: values of a known solution by column; those not named are 0.

    Raises CompileError P220 (exit 1) when the solver fails for a reason of its own.
    """
    scale = scale_of(text)
    model = _read(text, scale)
    result = mathopt.solve(
        model,
        mathopt.SolverType.GSCIP,
        params=mathopt.SolveParameters(
            time_limit=datetime.timedelta(seconds=time_limit_s),
            relative_gap_tolerance=gap,
            threads=1,
            random_seed=seed,
        ),
        model_params=_hints(model, hint),
    )
    return _solution(result, scale, gap)


def resolve(problem: str, time_limit_s: float = 600.0, gap: float = 1e-9, seed: int = 1) -> tuple[str, float]:
    """Solve a plan's saved `problem` again from nothing: status (optimal | feasible | infeasible | unknown) and the
    objective in the planner's unit, seconds."""
    solution = solve(problem, time_limit_s, gap, seed)
    return solution.status, solution.objective


def _read(text: str, scale: float) -> mathopt.Model:
    """The model of `text`, its objective in units of `scale` seconds: exact, as the scale is a power of two."""
    model = mathopt.Model.from_model_proto(mps_converter.mps_to_model_proto(text))
    model.minimize(
        mathopt.fast_sum(term.coefficient / scale * term.variable for term in model.objective.linear_terms())
    )
    return model


def _hints(model: mathopt.Model, hint: Mapping[str, float] | None) -> mathopt.ModelSolveParameters | None:
    if hint is None:
        return None
    values = {variable: hint.get(variable.name, 0.0) for variable in model.variables()}
    return mathopt.ModelSolveParameters(solution_hints=[mathopt.SolutionHint(variable_values=values)])


def _solution(result: mathopt.SolveResult, scale: float, gap: float) -> Solution:
    reason = result.termination.reason
    bounds = result.termination.objective_bounds
    if reason in (mathopt.TerminationReason.OPTIMAL, mathopt.TerminationReason.FEASIBLE):
        values = {variable.name: value for variable, value in result.variable_values().items()}
        objective, bound = bounds.primal_bound * scale, bounds.dual_bound * scale
        solution = Solution(SolverStatus.FEASIBLE, objective, min(bound, objective), values)
        proven = reason == mathopt.TerminationReason.OPTIMAL or solution.gap <= gap
        return Solution(SolverStatus.OPTIMAL, objective, solution.bound, values) if proven else solution
    if reason == mathopt.TerminationReason.INFEASIBLE:
        return Solution(SolverStatus.INFEASIBLE, float("inf"), float("inf"), {})
    if reason == mathopt.TerminationReason.NO_SOLUTION_FOUND:
        return Solution(SolverStatus.UNKNOWN, float("inf"), bounds.dual_bound * scale, {})
    raise CompileError(_FAILED, f"the solver stopped: {reason.name}, {result.termination.detail}", INTERNAL)
