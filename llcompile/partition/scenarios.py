"""What may happen to a plan's devices, and the plans that could be taken then: what spares are chosen for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import comb, perm

from llcompile.ir.cluster import Cluster, Device
from llcompile.ir.plan import BlockCost, Stage
from llcompile.partition.brute_force import candidates
from llcompile.partition.clock import Clock
from llcompile.partition.evaluate import held_costs, in_flight_bytes
from llcompile.partition.many import SUBSETS, outlook_of
from llcompile.partition.options import NO_GROUPS
from llcompile.partition.orders import Cutter, Order
from llcompile.partition.problem import HEAD, INFINITY, Problem
from llcompile.partition.search import found_plan
from llcompile.partition.tables import Tables
from llrun.schema import MoveEvent

Stages = tuple[Stage, ...]

SLOWER = 2.0  # "half as fast": seconds are so many times the predicted ones
FEW = 150  # placements up to which all are looked at
MOST = 250  # placements kept of one scenario
NEW_TOKENS = 10**6  # a request of so many tokens: seconds of a token are all that counts
GAP = 1e-4


@dataclass(frozen=True)
class Scenario:
    """`event` happens to `device`; `problem`: the cluster as it is then, devices that stand by at work.

    `stay_s`: TPOT of the plan as it is, infinite where it cannot go on. `kept`: what devices have in memory while the
    change is made: nothing after a loss, when a device may let go of what it ran.
    """

    event: MoveEvent
    device: str
    problem: Problem
    stay_s: float
    kept: Stages


@dataclass(frozen=True)
class Placed:
    """A plan that could be taken, and its TPOT."""

    stages: Stages
    tpot_s: float


def scenarios(problem: Problem, stages: Stages) -> tuple[Scenario, ...]:
    """Each worker of the plan lost, then each of its devices half as fast, in the cluster's order."""
    used = [d for d in problem.cluster.devices if any(d.name in stage.devices for stage in stages)]
    lost = [
        Scenario(MoveEvent.LOST, d.name, _changed(problem, without(problem.cluster, d.name)), INFINITY, ())
        for d in used
        if d.name != problem.cluster.head
    ]
    return (*lost, *(_half(problem, stages, d) for d in used))


def _half(problem: Problem, stages: Stages, device: Device) -> Scenario:
    slow = replace(
        device,
        compute_flops=device.compute_flops / SLOWER,
        memory_bytes_per_s=device.memory_bytes_per_s / SLOWER,
    )
    devices = tuple(slow if d.name == device.name else d for d in problem.cluster.devices)
    changed = _changed(problem, replace(problem.cluster, devices=devices))
    return Scenario(MoveEvent.HALF, device.name, changed, found_plan(changed, stages).figures.tpot_s, stages)


def without(cluster: Cluster, name: str) -> Cluster:
    return replace(cluster, devices=tuple(d for d in cluster.devices if d.name != name))


def _changed(problem: Problem, cluster: Cluster) -> Problem:
    """Wishes are for the plan: what is left of it goes on however it can, save that the head keeps what it is to keep.
    Only seconds of a token count."""
    kept = tuple(pin for pin in problem.options.pins if pin.keep)
    options = replace(
        problem.options,
        objective="latency",
        prompt_tokens=1,
        new_tokens=NEW_TOKENS,
        pins=kept,
        use_all=False,
        tensor_parallel=NO_GROUPS,
    )
    return replace(problem, cluster=cluster, options=options)


def placements(scenario: Scenario, stages: Stages, clock: Clock) -> tuple[Placed, ...]:
    """Plans that memory allows, the fastest first: all of a small problem, else the best ones of several kinds.

    Groups are not made anew. Those are the best at all; the best with each worker; the best cuts of the plan's own
    order of devices without the lost or slow one, or with another in its place; the same with no more on any disk, or
    in any memory, than is free beside what the device has; and, of a plan without groups, what neighbours take of the
    stage in question.
    """
    found: dict[Stages, None] = {}
    for made in _all(scenario, stages, clock):
        if made != stages and fits(scenario, made):
            found.setdefault(made, None)
    placed = [Placed(made, found_plan(scenario.problem, made).figures.tpot_s) for made in found]
    return tuple(sorted(placed, key=lambda p: (p.tpot_s, len(p.stages), _key(p.stages)))[:MOST])


def _key(stages: Stages) -> tuple[tuple[str, int], ...]:
    return tuple((stage.lead, stage.stop) for stage in stages)


def _all(scenario: Scenario, stages: Stages, clock: Clock) -> Iterator[Stages]:
    problem = scenario.problem
    workers = len(problem.workers)
    count = sum(perm(workers, k) * comb(problem.blocks - 1, k + 1) for k in range(1, workers + 1))
    if count <= FEW:
        yield from candidates(problem.blocks, problem.cluster, problem.options)
        return
    if not any(stage.is_group for stage in stages):
        yield from _neighbours(scenario, stages)
    less = _left(scenario, stages)
    variants = [problem, *([replace(problem, cluster=less)] if less != problem.cluster else [])]
    for variant in variants:
        yield from _ordered(variant, scenario.device, stages)
        if workers <= SUBSETS and not clock.beyond(0.8):
            outlook = outlook_of(variant, GAP, Clock(clock.left_s / 4))
            best = [outlook.best] if outlook.best else []
            yield from (plan.stages for plan in (*best, *outlook.by_device.values()))


def _left(scenario: Scenario, stages: Stages) -> Cluster:
    """The cluster with the disks and memories that devices have beside what they run now."""
    problem = scenario.problem

    def left(d: Device) -> Device:
        mine = [(s.start, s.stop) for s in stages if s.devices == (d.name,)]
        disk = None if d.disk_bytes is None else d.disk_bytes - problem.on_disk(mine)
        kept = held_costs(scenario.kept, d.name, problem.costs, problem.pieces)
        return replace(d, disk_bytes=disk, memory_bytes=d.memory_bytes - needed(kept))

    return replace(problem.cluster, devices=tuple(map(left, problem.cluster.devices)))


def _ordered(problem: Problem, device: str, stages: Stages) -> Iterator[Stages]:
    """The best cuts of the orders that the plan's own suggests."""
    if problem.head_alone():
        yield (Stage.on(problem.cluster.head, 0, problem.blocks),)
    cutter = Cutter(Tables(problem))
    stops = [int(stop) for stop in cutter.tables.head_stops]
    for order in orders(problem, device, stages) if stops else ():
        best = min(cutter.routes([order] * len(stops), stops), key=lambda route: route.sum)
        if best.sum < INFINITY:
            yield tuple(cutter.stages(best))


def orders(problem: Problem, device: str, stages: Stages) -> tuple[Order, ...]:
    """Numbers of workers: the plan's order, a group's devices one behind the other; without `device`, with another in
    its place, with another at its end."""
    numbers = {d.name: n for n, d in enumerate(problem.devices)}
    names = [name for stage in stages for name in stage.devices if name != problem.cluster.head]
    others = [problem.devices[n].name for n in problem.workers if problem.devices[n].name not in names]
    less = [name for name in names if name != device]
    wanted = [names, less, *([*names, other] for other in others), *([*less, other] for other in others)]
    wanted += [[other if name == device else name for name in names] for other in others]
    known = [order for order in wanted if order and all(name in numbers for name in order)]
    return tuple(dict.fromkeys(tuple(numbers[name] for name in order) for order in known))


def _neighbours(scenario: Scenario, stages: Stages) -> Iterator[Stages]:
    """The stages of the device, cut in three: the neighbours before and after take the ends, it keeps the middle.

    A lost one keeps nothing; a device that runs nothing may take the whole stage.
    """
    problem = scenario.problem
    for number, stage in enumerate(stages):
        if stage.lead != scenario.device:
            continue
        idle = [d.name for d in problem.devices if all(s.lead != d.name for s in stages)]
        for name in idle if stage.lead != problem.cluster.head else ():
            yield (*stages[:number], Stage.on(name, stage.start, stage.stop), *stages[number + 1 :])
        for first in range(stage.start, stage.stop + 1):
            for second in range(first, stage.stop + 1):
                if first == second or scenario.event is MoveEvent.HALF:
                    yield _cut(stages, number, first, second)


def _cut(stages: Stages, number: int, first: int, second: int) -> Stages:
    """Stage `number` left with first..second-1, the rest with its neighbours; two in a row of one device become one."""
    edges = list(stages)
    stage = edges[number]
    edges[number] = replace(stage, start=first, stop=second)
    if number:
        edges[number - 1] = replace(edges[number - 1], stop=first)
    if number + 1 < len(edges):
        edges[number + 1] = replace(edges[number + 1], start=second)
    joined: list[Stage] = []
    for each in edges:
        if each.start == each.stop:
            continue
        if joined and joined[-1].lead == each.lead:
            joined[-1] = replace(joined[-1], stop=each.stop)
        else:
            joined.append(each)
    return tuple(joined)


def fits(scenario: Scenario, stages: Stages) -> bool:
    """Whether `stages` are a plan that every device's memory has room for, also while the change is made."""
    problem, head = scenario.problem, scenario.problem.cluster.head
    edges = [0, *(stage.stop for stage in stages)]
    if [stage.start for stage in stages] != edges[:-1] or edges[-1] != problem.blocks:
        return False
    if stages[0].lead != head or stages[-1].lead != head:
        return False
    leads = [stage.lead for stage in stages]
    known = {d.name for d in problem.devices}
    if not set(leads) <= known or any(leads.count(n) > (2 if n == head else 1) for n in set(leads)):
        return False
    if any(stage.lead != head and not problem.kept.isdisjoint(stage.blocks) for stage in stages):
        return False
    return all(_holds(problem, name, stages, scenario.kept) for name in set(leads))


def _holds(problem: Problem, name: str, stages: Stages, kept: Stages) -> bool:
    device = problem.cluster.device(name)
    blocks = blocks_of(name, (*stages, *kept))
    grouped = [stage for stage in kept if stage.is_group]
    pieces = held_costs(grouped, name, problem.costs, problem.pieces)
    several = len({each for stage in (*stages, *kept) for each in stage.devices}) > 1
    buffers = in_flight_bytes(problem.flows) if several else 0
    there = needed([*(problem.costs[b] for b in blocks), *pieces])
    return there + buffers + device.runtime_bytes <= device.memory_bytes


def needed(costs: Sequence[BlockCost]) -> int:
    """Bytes of blocks and pieces that are in a device's memory together."""
    stored = sum(cost.weights_bytes + cost.cache_bytes for cost in costs)
    return stored + max((cost.activation_bytes for cost in costs), default=0)


def blocks_of(name: str, stages: Iterable[Stage]) -> tuple[int, ...]:
    """The whole blocks that `stages` have device `name` run, ascending."""
    return tuple(sorted({b for stage in stages if stage.devices == (name,) for b in stage.blocks}))


def could_run(problem: Problem, device: int) -> Sequence[int]:
    """Blocks that device number `device` has the memory to run, the head's ends on it where it is the head."""
    last = problem.blocks - 1
    if device == HEAD:
        ends = sorted({0, last})
        inner = [b for b in range(1, last) if _alone_fits(problem, device, [*ends, b])]
        return [*ends[:1], *inner, *ends[1:]]
    mine = [b for b in range(1, last) if b not in problem.kept]
    return [b for b in mine if _alone_fits(problem, device, [b])]


def _alone_fits(problem: Problem, device: int, blocks: Sequence[int]) -> bool:
    return problem.needed([(b, b + 1) for b in blocks]) <= problem.free[device]
