"""In what pieces of a prompt a plan reckons: smaller ones keep more devices busy at once, and read weights more often.

Which devices a plan has and where it cuts depends on it, so there is a plan for each of a few sizes, and the best is
taken; at run time the head cuts each prompt anew (llrun.programs.portions). What is left out: other sizes. The bound is
the least of all, so what is proven is proven among these. Where blocks stream from disk each piece waits for all of
them, so that full chunks are best.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from llcompile.ir.plan import Plan
from llcompile.partition.clock import Clock
from llcompile.partition.options import PlanOptions
from llrun.programs.portions import LEAST
from llrun.schema import PlanStatus

Make = Callable[[int | None, float], Plan]  # a plan for prompts in such pieces, made in so many seconds
FIRST = 0.5  # of the time, for full chunks


def plan_portions(options: PlanOptions, devices: int, make: Make) -> Plan:
    """The best of the plans that `make` makes for full chunks (None) and for a half, a quarter and so on of them.

    Raises what `make` raises for full chunks: what fits does not depend on the pieces.
    """
    smaller = portions(options) if devices > 1 and options.objective == "latency" else ()
    if not smaller:
        return make(None, options.time_limit_s)
    clock = Clock(options.time_limit_s)
    best = make(None, options.time_limit_s * FIRST)
    if any(stage.window for stage in best.stages):
        return best
    bound, looked = best.bound, [options.shapes.chunk]
    for number, rows in enumerate(smaller):
        if number and clock.left_s == 0:
            break
        made = make(rows, clock.left_s / (len(smaller) - number))
        bound, looked = min(bound, made.bound), [*looked, rows]
        if made.objective < best.objective:
            best = made
    return _among(best, bound, options.gap, looked, clock.spent_s)


def portions(options: PlanOptions) -> tuple[int, ...]:
    """The sizes to be looked at besides full chunks, from the largest on: of one piece there is no half."""
    found, rows = list[int](), options.shapes.chunk // 2
    while rows >= LEAST:
        if rows < options.prompt_tokens:
            found.append(rows)
        rows //= 2
    return tuple(found)


def _among(best: Plan, bound: float, gap: float, looked: list[int], seconds: float) -> Plan:
    """The best plan with what is proven of it among all."""
    bound = min(bound, best.objective)
    beside = (best.objective - bound) / best.objective if best.objective else 0.0
    proven = best.status is PlanStatus.OPTIMAL and beside <= gap
    rows = best.portion or best.shapes.chunk
    others = ", ".join(str(each) for each in looked if each != rows)
    note = f"prompts are reckoned in pieces of {rows} tokens, the best of those looked at (also {others})"
    return replace(
        best,
        status=PlanStatus.OPTIMAL if proven else PlanStatus.FEASIBLE,
        bound=bound,
        gap=beside,
        solve_s=seconds,
        notes=(*best.notes, note),
    )
