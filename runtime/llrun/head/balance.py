"""The default balancing function: moves when it pays, and is calm where speeds come and go.

`rebalance` is the rule, a function of a View as anybody's may be. `decide` gives it a memory: the rule is asked when
something has happened, has to want a move several times in a row, and is told what is better believed of a device that
had to be left before: that it is as slow as it was then, for twice as long after each further time.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from statistics import median

from llrun.head.view import EventKind, View
from llrun.programs.rated import devices_of
from llrun.schema import StageRecord

GAIN = 0.1  # of the present TPOT: less is not worth a move
MARGIN = 1.5  # what is saved over the tokens to come, over what the move costs
TIMES = 3  # so often in a row the rule must want a move
SLOW = 1.3  # times slower than ever: a device that is relieved then had to be left
AGAIN_S = 30.0  # until the rule is asked though nothing has happened
MOST, MOST_S = 2, 60.0  # moves in so many seconds
DOUBT_S = 60  # half of what a device is doubted for that had to be left twice; doubled for each further time
FORGET_S = 3600  # the longest doubt, and how long it counts that a device had to be left
WORSE = 1.05  # times the seconds a token before a move: one that gives more is undone
LOADED = 1.15  # times slower with more to do: then it is the move that was wrong
LOOKS = 8  # views after which a move is no longer doubted
CALM_S = 120  # in which none is made after one that was undone, unless something happens; doubled for each further time

Stages = tuple[StageRecord, ...]


def rebalance(view: View) -> Sequence[StageRecord] | None:
    """The best stages, if they save more by the end of the open sequences than the change to them costs."""
    best = view.best()
    if best is None or best == view.stages:
        return None
    now_s, then_s = view.predict(view.stages), view.predict(best)
    saved_s = (now_s - then_s) * view.to_come
    if now_s - then_s < GAIN * now_s or saved_s <= MARGIN * view.cost(best).seconds:
        return None
    return best


@dataclass(frozen=True)
class Doubt:
    """Of a device that had to be left, or was lost: when, and how slow it was the last time."""

    times: tuple[float, ...]
    slowness: float

    def holds(self, now_s: float) -> bool:
        """Once may happen; after that, for twice as long each time."""
        again = len(self.times) - 1
        return again > 0 and now_s < self.times[-1] + min(DOUBT_S * 2**again, FORGET_S)


@dataclass(frozen=True)
class Trial:
    """The last move: the stages before and after it; the former's seconds a token, and how slow the devices were.
    `looks`: views since it was done; `worse`: in how many of them in a row it gave more seconds a token."""

    before: Stages
    after: Stages
    tpot_s: float
    slowness: Mapping[str, float]
    looks: int = 0
    worse: int = 0


@dataclass(frozen=True)
class Calm:
    """After a move that was undone. `slowness`: of the devices as they were before it."""

    until_s: float
    slowness: Mapping[str, float]
    times: int = 0

    def ended_by(self, view: View) -> bool:
        """Whether something has happened; that a device is again as it was before the move is nothing new."""
        event = view.event
        if event.kind is not EventKind.SLOW or event.device is None:
            return event.kind is not EventKind.STEP
        now, then = view.devices[event.device].slowness, self.slowness.get(event.device, 0.0)
        return not then / SLOW < now < then * SLOW


@dataclass(frozen=True)
class Memory:
    """`next_s`: when the rule is asked next; `to_come`: tokens, when it was asked last; `wanted`: how often in a row it
    wanted a move. `moves`: when those were done that it wanted, inf for one that is not yet. By device, `fastest`: the
    least slowness that it was seen with; `doubts`. `trial`: the last move, while it may still be undone."""

    next_s: float = -inf
    to_come: int = 0
    wanted: int = 0
    moves: tuple[float, ...] = ()
    fastest: Mapping[str, float] = field(default_factory=dict)
    doubts: Mapping[str, Doubt] = field(default_factory=dict)
    trial: Trial | None = None
    calm: Calm = Calm(-inf, {})

    def moved(self, now_s: float) -> int:
        """Moves in the last MOST_S."""
        return sum(at > now_s - MOST_S for at in self.moves)


class Policy:
    """The rule with its memory. `clock`: seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._memory = clock, Memory()

    def __call__(self, view: View) -> Stages | None:
        """The stages to change to, or None."""
        wanted, self._memory = decide(view, self._memory, self._clock())
        return wanted


def decide(view: View, memory: Memory, now_s: float) -> tuple[Stages | None, Memory]:
    """The stages to change to, None to stay, and what to remember."""
    memory = _noted(view, memory, now_s)
    undone, memory = _looked_back(view, memory, now_s)
    if undone is not None:
        return undone, memory
    if now_s < max(memory.next_s, memory.calm.until_s) or memory.moved(now_s) >= MOST:
        return None, memory
    memory = replace(memory, to_come=view.to_come, fastest=_fastest(view, memory))
    best = rebalance(believed(view, memory, now_s))
    if best is None:
        return None, replace(memory, wanted=0, next_s=now_s + AGAIN_S)
    if memory.wanted + 1 < TIMES:
        return None, replace(memory, wanted=memory.wanted + 1)
    doubts = dict(memory.doubts)
    for name in relieved(view.stages, best):
        if view.devices[name].slowness >= SLOW * memory.fastest[name]:
            doubts[name] = _doubt(view, memory, name, now_s)
    slowness = {name: device.slowness for name, device in view.devices.items()}
    trial = Trial(view.stages, tuple(best), view.predict(view.stages), slowness)
    return tuple(best), replace(memory, wanted=0, moves=(*memory.moves, inf), doubts=doubts, trial=trial)


def _looked_back(view: View, memory: Memory, now_s: float) -> tuple[Stages | None, Memory]:
    """The stages before the last move, if it has made things worse, and what to remember.

    It has if devices that got more to do became slower by it: what a token takes is measured before and after. What
    turns out wrong is no move of those that there may be in a minute, nor is undoing it.
    """
    trial = memory.trial
    if trial is None or view.stages == trial.before:
        return None, memory
    if view.stages != trial.after:  # a loss has changed them since
        return None, replace(memory, trial=None)
    before, now = counts(trial.before), counts(view.stages)
    loaded = [name for name in now if now[name] > before[name]]
    slower = any(view.devices[name].slowness > LOADED * trial.slowness[name] for name in loaded)
    worse = slower and view.predict(view.stages) > WORSE * trial.tpot_s
    trial = replace(trial, looks=trial.looks + 1, worse=trial.worse + 1 if worse else 0)
    if trial.worse < TIMES or view.faults(trial.before):
        return None, replace(memory, trial=trial if trial.looks < LOOKS or trial.worse else None)
    times = memory.calm.times + 1
    calm = Calm(now_s + min(CALM_S * 2 ** (times - 1), FORGET_S), trial.slowness, times)
    return trial.before, replace(memory, trial=None, calm=calm, moves=memory.moves[:-1], wanted=0)


def _noted(view: View, memory: Memory, now_s: float) -> Memory:
    """The memory with what has happened since the last view."""
    if not memory.fastest:
        # The plan may be wrong for all by one factor: what counts is who differs from the others.
        usual = median(view.devices[name].slowness for name in used(view.stages))
        memory = replace(memory, fastest=dict.fromkeys(view.devices, usual))
    # There is no view while a move goes on: with this one, it is done.
    moves = tuple(min(at, now_s) for at in memory.moves if at > now_s - MOST_S)
    event, doubts = view.event, memory.doubts
    if event.kind is EventKind.LOST and event.device is not None:
        doubts = {**doubts, event.device: _doubt(view, memory, event.device, now_s)}
    happened = event.kind is not EventKind.STEP or view.to_come > 2 * memory.to_come
    next_s = now_s if happened else memory.next_s
    calm = replace(memory.calm, until_s=-inf) if memory.calm.ended_by(view) else memory.calm
    return replace(memory, next_s=next_s, moves=moves, doubts=doubts, calm=calm)


def _fastest(view: View, memory: Memory) -> Mapping[str, float]:
    now = {name: min(memory.fastest[name], view.devices[name].slowness) for name in used(view.stages)}
    return {**memory.fastest, **now}


def _doubt(view: View, memory: Memory, name: str, now_s: float) -> Doubt:
    known = memory.doubts.get(name, Doubt((), 0.0)).times
    times = (*(at for at in known if at > now_s - FORGET_S), now_s)
    return Doubt(times, view.devices[name].slowness)


def believed(view: View, memory: Memory, now_s: float) -> View:
    """The view with what is better believed of devices that had to be left.

    While there is a doubt, one is as slow as it was then; if it runs nothing, it is not there. Later, nothing measures
    one that runs nothing: it is tried, as fast as it ever was, when it can be left again at once.
    """
    supposed, barred = dict[str, float](), list[str]()
    for name, doubt in memory.doubts.items():
        if name in used(view.stages):
            if doubt.holds(now_s):
                supposed[name] = max(view.devices[name].slowness, doubt.slowness)
        elif doubt.holds(now_s) or memory.moved(now_s):
            barred.append(name)
        else:
            supposed[name] = memory.fastest[name]
    return view.supposing(supposed).without(*barred)


def relieved(before: Sequence[StageRecord], after: Sequence[StageRecord]) -> list[str]:
    """The devices that have less to do than before."""
    then, now = counts(before), counts(after)
    return [name for name in sorted(then) if now[name] < then[name]]


def used(stages: Sequence[StageRecord]) -> frozenset[str]:
    """The devices that run something."""
    return devices_of(stages)


def counts(stages: Sequence[StageRecord]) -> Mapping[str, float]:
    """How many blocks each device has, of a group's its share; of devices that have none 0."""
    found: dict[str, float] = defaultdict(float)
    for stage in stages:
        for name, share in zip(stage.devices, stage.shares, strict=True):
            found[name] += share * len(range(*stage.blocks))
    return found
