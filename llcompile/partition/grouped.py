"""Plans with a group: every candidate with its pipelines beside, or the one group that the user asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from llcompile.ir.errors import INFEASIBLE, USAGE, CompileError
from llcompile.ir.plan import Stage
from llcompile.partition.answers import Answer, Look, glance, holds, look, prove
from llcompile.partition.clock import Clock
from llcompile.partition.disk import room_bytes
from llcompile.partition.formulation import formulate
from llcompile.partition.groupings import Candidate, Names, candidates, sets_of
from llcompile.partition.mip import to_mps
from llcompile.partition.options import Pin
from llcompile.partition.problem import HEAD, INFINITY, Problem
from llcompile.partition.reasons import group_words, request_words
from llcompile.partition.refusal import remedy_text, size
from llcompile.partition.search import Found, found_plan
from llcompile.partition.shares import cut_with, excess, open_blocks, splits

_NO_PLAN, _CONFLICT, _SIZE = "P201", "P213", "P217"
# Shares of the time after which no further candidates are made, no more of them searched whole, none at all.
MAKING, LOOKING, SEARCHING = 0.4, 0.55, 0.95
PART = 0.5  # of the time that is left, for one candidate
LEAST_S = 0.05


@dataclass
class _Tally:
    """What the candidates gave so far. `ways`: the best plan that really has a group."""

    target: float
    gap: float
    best: tuple[Candidate, Found] | None = None
    with_group: tuple[Candidate, Found] | None = None
    bound: float = INFINITY
    by_device: dict[str, Found] = field(default_factory=dict)

    def add(self, candidate: Candidate, found: Found) -> None:
        objective = found.figures.objective
        if objective < self.target:
            self.target, self.best = objective, (candidate, found)
        if any(stage.lead == candidate.group.name for stage in found.stages):
            if self.with_group is None or objective < self.with_group[1].figures.objective:
                self.with_group = candidate, found
            self.add_devices({name: found for name in candidate.group.devices})

    def add_devices(self, plans: Mapping[str, Found]) -> None:
        for name, found in plans.items():
            known = self.by_device.get(name)
            if known is None or found.figures.objective < known.figures.objective:
                self.by_device[name] = found


def grouped(problem: Problem, clock: Clock, base: Answer | None) -> tuple[Answer | None, tuple[str, ...]]:
    """The best of `base`, the plan of single devices, and of all plans with a candidate's group.

    With it, what was looked at, in sentences. The bound is the least of all candidates': what is proven is proven among
    them.
    """
    sets, every = sets_of(problem)
    made: list[Candidate] = []
    reached = 0
    for names in sets:
        if clock.beyond(MAKING) and made:
            break
        made += candidates(problem, names)
        reached += 1
    tally = _Tally(base.found.figures.objective if base else INFINITY, problem.options.gap)
    for candidate in made:
        whole = whole_group(candidate)
        if whole:
            tally.add(candidate, whole)
    looks = _looked(sorted(made, key=lambda each: each.least), tally, clock)
    _proven(looks, tally, clock)
    tally.bound = min((known.bound for _, known in looks), default=INFINITY)
    unfinished = sum(_open(known, tally) for _, known in looks)
    notes = _notes(problem, base, tally, (reached, len(sets)), len(made), every, unfinished)
    return _answer(base, tally), notes


def _looked(made: Sequence[Candidate], tally: _Tally, clock: Clock) -> list[tuple[Candidate, Look]]:
    """What is known of each candidate: all plans of as many as there is time for, then a glance at the others."""
    looks, left = [], list(made)
    while left and not clock.beyond(LOOKING):
        candidate = left.pop(0)
        known = Look(None, candidate.least, {})
        looks.append((candidate, _search(candidate, tally, clock) if _open(known, tally) else known))
    for number, candidate in enumerate(left):
        known = Look(None, candidate.least, {})
        if _open(known, tally) and not clock.beyond(SEARCHING):
            share = Clock(clock.left_s * SEARCHING / (len(left) - number))
            seen = glance(candidate.problem, share, tally.target)
            known = replace(seen, bound=max(seen.bound, candidate.least))
            if known.found:
                tally.add(candidate, known.found)
        looks.append((candidate, known))
    return looks


def _open(known: Look, tally: _Tally) -> bool:
    """Whether a candidate may have a plan that is better than the best one."""
    return known.bound < tally.target * (1 - tally.gap)


def _search(candidate: Candidate, tally: _Tally, clock: Clock) -> Look:
    """All plans of a candidate. Where the head is in the group and the best one asks too much of it, the best of those
    in which it has nothing but that and the ends."""
    known = look(candidate.problem, Clock(max(clock.left_s * PART, LEAST_S)), tally.target)
    tally.add_devices(known.by_device)
    found = known.found
    if known.near:
        less = look(_head_at_ends(candidate), Clock(max(clock.left_s * PART, LEAST_S)), tally.target)
        found = less.found
    if found:
        tally.add(candidate, found)
    return replace(known, found=found, bound=max(known.bound, candidate.least))


def _proven(looks: list[tuple[Candidate, Look]], tally: _Tally, clock: Clock) -> None:
    """Let the solver have those that are open, the most promising first, while there is time."""
    for number in sorted(range(len(looks)), key=lambda n: (looks[n][1].bound, n)):
        candidate, known = looks[number]
        if not _open(known, tally) or clock.beyond(SEARCHING):
            continue
        known = prove(candidate.problem, known, Clock(clock.left_s * PART))
        looks[number] = candidate, known
        if known.found:
            tally.add(candidate, known.found)


def _head_at_ends(candidate: Candidate) -> Problem:
    """The problem with a head that has room for what it must hold, and for its pieces."""
    problem, head = candidate.problem, candidate.problem.devices[HEAD]
    own = [(b, b + 1) for b, owner in enumerate(problem.owners) if owner == HEAD]
    room = room_bytes(head, problem.blocks)
    less = replace(
        head,
        memory_bytes=head.memory_bytes - problem.free[HEAD] + problem.needed(own),
        disk_bytes=None if room is None else (head.disk_bytes or 0) - room + problem.on_disk(own),
    )
    devices = tuple(less if d.name == head.name else d for d in problem.cluster.devices)
    return replace(problem, cluster=replace(problem.cluster, devices=devices))


def whole_group(candidate: Candidate) -> Found | None:
    """The plan in which the group has all blocks that it may have; None where that is no plan."""
    problem, blocks = candidate.problem, open_blocks(candidate.problem)
    if not blocks or blocks[-1] - blocks[0] + 1 > len(blocks):
        return None
    start, stop, number = blocks[0], blocks[-1] + 1, len(problem.devices) - 1
    others = problem.options.use_all and number > 1
    if others or not problem.fits(number, [(start, stop)]) or not problem.head_holds(start, stop):
        return None
    head = problem.devices[HEAD].name
    ends = Stage.on(head, 0, start), Stage.on(head, stop, problem.blocks)
    found = found_plan(problem, (ends[0], Stage.on(candidate.group.name, start, stop), ends[1]))
    return found if holds(problem, found) else None


def _answer(base: Answer | None, tally: _Tally) -> Answer | None:
    bound = min(tally.bound, base.bound if base else INFINITY)
    by_device = {**(base.by_device if base else {})}
    for name, found in tally.by_device.items():
        known = by_device.get(name)
        if known is None or found.figures.objective < known.figures.objective:
            by_device[name] = found
    if tally.best is None:
        return replace(base, bound=bound, by_device=by_device) if base else None
    candidate, found = tally.best
    text = to_mps(formulate(candidate.problem))
    return Answer(candidate.problem, found, bound, by_device, text)


def _notes(
    problem: Problem,
    base: Answer | None,
    tally: _Tally,
    sets: tuple[int, int],
    made: int,
    every: bool,
    unfinished: int,
) -> tuple[str, ...]:
    some = "" if every else ", of so many devices the fastest and the largest,"
    reached, there = sets
    all_ = "all " if every and reached == there > 1 else ""
    which = f"{all_}{_count(reached, 'set')} of devices{some}"
    ways = f"{_count(made, 'way')} to share and to sum"
    notes = [f"groups looked at: {which} in {ways}; a plan has one group at most"]
    if tally.with_group:
        candidate, found = tally.with_group
        group = group_words(candidate.group)
        without = (
            f"without a group {request_words(problem, base.found)}"
            if base
            else "without a group nothing fits"
        )
        notes.append(f"with {group} {request_words(problem, found)}; {without}")
    elif base:
        notes.append(f"no group fits or can be cut; without one {request_words(problem, base.found)}")
    if reached < there:
        notes.append(
            f"time ran out before {there - reached} further sets were looked at: use a longer --time-limit"
        )
    if unfinished:
        notes.append(
            f"time ran out before {unfinished} of these were looked at whole: use a longer --time-limit"
        )
    return tuple(notes)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


# --- the group that was asked for ----------------------------------------------------------------------------------


def exactly(problem: Problem, count: int) -> tuple[Answer, tuple[str, ...]]:
    """The best group of `count` devices that has all blocks but the head's.

    Raises CompileError: P217 (exit 2) where there are not so many devices or blocks cannot be cut, P213 (exit 2) where
    other wishes contradict it, P201 (exit 3) where no such group has the memory or the disk.
    """
    _check_size(problem, count)
    sets, every = sets_of(problem, count)
    plans = [
        (each, found) for names in sets for each in candidates(problem, names) if (found := whole_group(each))
    ]
    if not plans:
        raise _too_small(problem, sets, count)
    candidate, found = min(plans, key=lambda plan: plan[1].figures.objective)
    by_device: dict[str, Found] = {}
    for each, other in sorted(plans, key=lambda plan: plan[1].figures.objective):
        for name in each.group.devices:
            by_device.setdefault(name, other)
    blocks = open_blocks(problem)
    pin = Pin(blocks[0], blocks[-1] + 1, candidate.group.name)
    pinned = replace(problem.options, pins=(*problem.options.pins, pin))
    text = to_mps(formulate(replace(candidate.problem, options=pinned)))
    some = "" if every else ", the fastest and the largest,"
    which = f"{'all ' if every and len(sets) > 1 else ''}{_count(len(sets), 'set')} of {count} devices{some}"
    note = f"groups looked at: {which} in {_count(len(plans), 'way')} to share and to sum that fit"
    return Answer(candidate.problem, found, found.figures.objective, by_device, text), (note,)


def _check_size(problem: Problem, count: int) -> None:
    wish, have = f"--tensor-parallel {count}", len(problem.devices)
    if count > have:
        raise CompileError(
            _SIZE,
            f"{wish}: {have} device{'s are' if have > 1 else ' is'} at work. Use --tensor-parallel auto, or a number "
            f"from 2 to {have}",
            USAGE,
        )
    pins = [pin for pin in problem.options.pins if not pin.keep]
    if pins:
        raise CompileError(
            _CONFLICT,
            f"{wish} and {pins[0]}: the group has all blocks that the head does not keep. Leave out one",
        )
    if problem.options.use_all and count < len(problem.workers):
        raise CompileError(
            _CONFLICT,
            f"{wish} and --use-all: {count} of {len(problem.workers)} workers would have blocks. Leave out one",
        )


def _too_small(problem: Problem, sets: Sequence[Names], count: int) -> CompileError:
    """The group that comes nearest, and what its scarcest member lacks."""
    near = min(_shortages(problem, sets), default=None)
    if near is None:
        return CompileError(
            _SIZE,
            f"--tensor-parallel {count}: the blocks of this model cannot be cut for {count} devices. Use fewer, or "
            "--tensor-parallel auto",
            USAGE,
        )
    _, names, scarce, need, free = near
    return CompileError(
        _NO_PLAN,
        f"no feasible plan: --tensor-parallel {count}: of the groups of {count} devices {', '.join(names)} comes "
        f"nearest, and {scarce} would need {size(need)} for its part, where it has {size(free)} free. "
        f"{remedy_text(problem, '--tensor-parallel auto', 'a smaller --context', 'more devices')}",
        INFEASIBLE,
    )


def _shortages(problem: Problem, sets: Sequence[Names]) -> Iterator[tuple[float, Names, str, float, float]]:
    """How far each group is from fitting: need over room, its devices, the scarcest of them, its need and its room."""
    numbers = {device.name: d for d, device in enumerate(problem.devices)}
    for names in sets:
        for shares in splits(problem, names):
            group = cut_with(problem, names, shares)
            if group is None:
                continue
            over = excess(problem, group)
            rank = int(over.argmax())
            free = max(problem.free[numbers[names[rank]]], 1)
            yield float(over[rank]), names, names[rank], float(over[rank]) * free, float(free)
