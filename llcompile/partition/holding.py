"""The MIP of the spares: which blocks each device holds on disk, so that what may happen is survived and answered well.

Variables, for scenario s, its placement p, device d and block b:
  take_s_p  in s the placement p is taken (binary). One at most; none: a loss is not survived, a slow plan stays.
  hold_d_b  d holds b: at least what any placement that is taken has d run (continuous: it follows from the others).
Solved one aim after the other, each held while the next is sought, but for its slack: most losses survived; the most
time saved when a device is slow; the quickest tokens after losses; the least disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llcompile.ir.errors import INTERNAL, CompileError
from llcompile.partition.disk import file_bytes
from llcompile.partition.mip import Mip, to_mps
from llcompile.partition.problem import INFINITY, Problem
from llcompile.partition.scenarios import Placed, Scenario, blocks_of
from llcompile.partition.solver import SolverStatus, solve
from llrun.schema import MoveEvent

SLACK = 0.02  # of what is saved or waited for: what less disk is worth
LEAST_GAIN = 0.05  # of a token's time: a smaller gain is within the noise of a running system
LEAST_S = 0.5
_BROKEN = "P224"

Held = Mapping[str, frozenset[int]]


@dataclass(frozen=True)
class Option:
    """A placement that may be taken: the blocks it has each device run; what it saves of a slow token's time; its TPOT
    as a multiple of the plan's."""

    name: str
    scenario: int
    event: MoveEvent
    uses: Held
    gain: float
    slowness: float


@dataclass(frozen=True)
class Aim:
    """What is minimised of the options that are taken, and the share of it that later aims may give up."""

    cost: Callable[[Option], float]
    slack: float


SURVIVED = Aim(lambda option: -1.0 if option.event is MoveEvent.LOST else 0.0, 0.0)
SAVED = Aim(lambda option: -option.gain, SLACK)
QUICK = Aim(lambda option: option.slowness if option.event is MoveEvent.LOST else 0.0, SLACK)


def options_of(answers: Sequence[tuple[Scenario, Sequence[Placed]]], tpot_s: float) -> tuple[Option, ...]:
    """What may be taken in each scenario. `tpot_s`: of the plan as it is."""
    made = []
    for number, (scenario, placed) in enumerate(answers):
        for index, each in enumerate(placed):
            slow = scenario.event is MoveEvent.HALF
            gain = (scenario.stay_s - each.tpot_s) / scenario.stay_s if slow else 0.0
            if not slow or gain >= LEAST_GAIN:
                names = {stage.lead for stage in each.stages}
                uses = {name: frozenset(blocks_of(name, each.stages)) for name in names}
                name = f"take_{number}_{index}"
                made.append(Option(name, number, scenario.event, uses, gain, each.tpot_s / tpot_s))
    return tuple(made)


def choose(
    problem: Problem, options: Sequence[Option], must: Held, free: frozenset[str], seconds: float
) -> tuple[Held, str]:
    """What each device holds, `must` at least, and the last problem that was solved, in MPS text.

    `free`: devices whose disk is not to be spared. `seconds`, for all solving: where they run out, the best found till
    then is held. Raises CompileError P224 (exit 1) where the solver finds nothing: a fault, as `must` alone will do.
    """
    reached: list[tuple[Aim, float]] = []
    share = max(seconds / 4, LEAST_S)
    values: Mapping[str, float] | None = None
    for aim in (SURVIVED, SAVED, QUICK):
        text = to_mps(_formulate(problem, options, must, free, aim, reached))
        values = _solved(text, share, problem.options.seed, values)
        least = sum(aim.cost(option) * round(values[option.name]) for option in options)
        reached.append((aim, least + aim.slack * abs(least)))
    text = to_mps(_formulate(problem, options, must, free, None, reached))
    values = _solved(text, share, problem.options.seed, values)
    taken = [option for option in options if round(values[option.name])]
    return {
        device.name: must.get(device.name, frozenset()).union(
            *(option.uses.get(device.name, frozenset()) for option in taken)
        )
        for device in problem.cluster.devices
    }, text


def _solved(text: str, seconds: float, seed: int, hint: Mapping[str, float] | None) -> Mapping[str, float]:
    solution = solve(text, seconds, 1e-9, seed, hint)
    if solution.status not in (SolverStatus.OPTIMAL, SolverStatus.FEASIBLE):
        raise CompileError(
            _BROKEN,
            f"no spares were found: {solution.status}. Please report this, or use --spare none",
            INTERNAL,
        )
    return solution.values


def _formulate(
    problem: Problem,
    options: Sequence[Option],
    must: Held,
    free: frozenset[str],
    aim: Aim | None,
    reached: Sequence[tuple[Aim, float]],
) -> Mip:
    """`aim` None: the least disk."""
    mip = Mip("spares", 1.0, "what is held on disk besides the plan; costs are shares, not seconds")
    take = {o.name: mip.column(o.name, aim.cost(o) if aim else 0.0, integer=True) for o in options}
    files = [file_bytes(cost) for cost in problem.costs]
    hold: dict[tuple[str, int], int] = {}
    for number, device in enumerate(problem.devices):
        mine = must.get(device.name, frozenset())
        wanted = mine.union(*(option.uses.get(device.name, frozenset()) for option in options))
        for b in sorted(wanted):
            spared = aim is None and device.name not in free
            cost = files[b] / sum(files) if spared else 0.0
            hold[device.name, b] = mip.column(f"hold_{number}_{b}", cost, lower=float(b in mine))
    _links(mip, options, take, hold)
    for number, device in enumerate(problem.devices):
        if problem.disk[number] < INFINITY:
            terms = {hold[d, b]: files[b] / sum(files) for d, b in hold if d == device.name}
            mip.row(f"disk_{number}", terms, upper=max(0.0, problem.disk[number]) / sum(files))
    for number, (kept, most) in enumerate(reached):
        mip.row(f"reached_{number}", {take[o.name]: kept.cost(o) for o in options}, upper=most + 1e-9)
    return mip


def _links(
    mip: Mip, options: Sequence[Option], take: Mapping[str, int], hold: Mapping[tuple[str, int], int]
) -> None:
    """One placement a scenario at most; what is taken is held."""
    for number in sorted({option.scenario for option in options}):
        mine = [option for option in options if option.scenario == number]
        mip.row(f"one_{number}", {take[option.name]: 1.0 for option in mine}, upper=1.0)
        for index, (device, b) in enumerate(hold):
            users = {take[o.name]: 1.0 for o in mine if b in o.uses.get(device, ())}
            if users:
                mip.row(
                    f"held_{number}_{index}", {hold[device, b]: 1.0, **{c: -1.0 for c in users}}, lower=0.0
                )
