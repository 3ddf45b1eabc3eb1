"""The MIP: which devices, in which order, and where the blocks are cut.

Variables, for device d and block b (all binary):
  begin[d,b]  d's stage has begun at or before b. For the head: its last stage has begun (its first begins at 0).
  end[d,b]    d's stage has ended before b. For the head: its first stage has ended.
  move[b,d,e] d hands over to e just before b (continuous: it follows from the others).
Both are steps from 0 to 1, so a stage is consecutive by construction; d has b when begin - end = 1 (the head:
1 - end + begin), and a start or a stop is a difference of neighbours. This is how unit commitment describes start-up
and shut-down (Rajan and Takriti, IBM RC23628, 2005), where it gives the convex hull of one unit's schedules.

Memory enters as reach: blocks start..b fit on d together exactly if start >= first_starts[b], so whoever began earlier
has ended by b: end[d,b] >= begin[d, first_starts[b] - 1]. Activations count as their true maximum that way, and each
device's relaxation stays integral where a row of bytes would leave a knapsack. The head's two stages share its memory:
leaving it at `stop` or later excludes returning before first_returns[stop].

A link costs only through `move` (a hop: latency and bytes), and through `copy` and `skip`, for a tensor that more than
the next block uses: copy[t,d,e] is 1 when d sends t to e (bytes), skip[t,d,e] when e is not the next stage (a latency
of its own). Where all links are alike, `cut` stands for all moves at a block; where there are many devices, `hop` for
those of two devices at any (llcompile.partition.links). `slowest` is the busiest device or link,
`alone` a constant 1 that carries the head's fixed cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import log2

from llcompile.ir.plan import Stage
from llcompile.partition.evaluate import in_flight_bytes
from llcompile.partition.links import (
    add_busy,
    add_copies,
    add_cuts,
    add_hops,
    add_moves,
    compact,
    too_many_copies,
)
from llcompile.partition.mip import INFINITY, Mip
from llcompile.partition.model import MipModel, Pair, add, flow_key, scaled
from llcompile.partition.problem import HEAD, Problem
from llcompile.partition.transmissions import messages

TOLERANCE = 1e-7  # relative; what bounds from elsewhere are loosened by, against rounding
WITHOUT_COPIES = "a relaxation: what tensors cost that skip blocks is left out, as the devices are too many"
UNITS = 1024.0  # about what the objective amounts to in the solver's eyes


def formulate(problem: Problem, limit: float = INFINITY, floor: float = 0.0) -> Mip:
    """The whole MIP of `problem`. `limit`: seconds that the slowest device and link stay within in any plan worth
    considering; it shortens the stages that need to be considered. `floor`: a bound on the objective that is known
    already, as a valid inequality.

    Of many devices and tensors that skip blocks it is a relaxation, and says so: these cost nothing in it."""
    model = MipModel(problem, Mip("plan", _scale(problem)), limit)
    _columns(model)
    _steps(model)
    _one_device_each(model)
    _reach(model)
    _head_memory(model)
    _head_in_group(model)
    _wishes(model)
    _cover(model)
    _twins(model)
    if problem.uniform:
        add_cuts(model)
    elif compact(problem):
        add_hops(model)
    else:
        add_moves(model)
    if too_many_copies(problem):
        model.mip.note = WITHOUT_COPIES
    else:
        for flow in problem.long_flows:
            add_copies(model, flow)
    add_busy(model)
    if floor > 0:
        costs = {i: column.cost / model.mip.scale for i, column in enumerate(model.mip.columns)}
        model.mip.row("floor", costs, lower=floor * (1 - TOLERANCE) / model.mip.scale)
    return model.mip


def values_of(problem: Problem, stages: Sequence[Stage], slowest: float) -> Mapping[str, float]:
    """The columns that are not 0 in the solution that `stages` are, by name."""
    numbers = {device.name: d for d, device in enumerate(problem.devices)}
    runs = [(numbers[stage.lead], stage.start, stage.stop) for stage in stages]
    values = {"alone": 1.0, "slowest": slowest / _scale(problem)}
    for d, start, stop in runs:
        steps = [("begin", start)] if start else []
        steps += [("end", stop)] if stop < problem.blocks or (d != HEAD and start) else []
        values |= {f"{kind}_{b}_{d}": 1.0 for kind, first in steps for b in range(first, problem.blocks)}
    for (d, _, _), (e, cut, _) in pairwise(runs):
        values[f"cut_{cut}"] = values[f"move_{cut}_{d}_{e}"] = 1.0
    for message in messages(stages, problem.long_flows):
        pair = f"{numbers[message.source]}_{numbers[message.destination]}"
        values[f"copy_{flow_key(problem, message.flow)}_{pair}"] = 1.0
        values[f"skip_{flow_key(problem, message.flow)}_{pair}"] = 0.0 if message.sequential else 1.0
    return values


def _scale(problem: Problem) -> float:
    least = sum(min(costs) for costs in zip(*problem.block_cost, strict=True))
    return 2.0 ** round(log2(least / UNITS)) if least > 0 else 1.0


def _columns(model: MipModel) -> None:
    problem, mip = model.problem, model.mip
    costs = problem.block_cost
    for d in range(len(problem.devices)):
        for b in range(problem.blocks):
            # Nothing begins or ends before block 0: the head has it.
            upper = 0.0 if b == 0 else 1.0
            model.begin[d, b] = mip.column(f"begin_{b}_{d}", costs[d][b], upper, integer=True)
            model.end[d, b] = mip.column(f"end_{b}_{d}", -costs[d][b], upper, integer=True)
    model.constant = mip.column("alone", sum(costs[HEAD]), lower=1.0)
    model.slowest = mip.column("slowest", problem.weights.slowest * mip.scale, model.limit / mip.scale)


def _steps(model: MipModel) -> None:
    """Steps rise; a worker ends only after it began, the head returns only after it left; all ends with the head."""
    problem, mip = model.problem, model.mip
    for d in range(len(problem.devices)):
        begin, end = model.begin, model.end
        for b in range(1, problem.blocks):
            mip.row(f"begun_{b}_{d}", {begin[d, b]: 1.0, begin[d, b - 1]: -1.0}, lower=0.0)
            mip.row(f"ended_{b}_{d}", {end[d, b]: 1.0, end[d, b - 1]: -1.0}, lower=0.0)
            later, sooner = (begin, end) if d == HEAD else (end, begin)
            mip.row(f"order_{b}_{d}", {sooner[d, b - 1]: 1.0, later[d, b]: -1.0}, lower=0.0)
        last = problem.blocks - 1
        mip.row(f"close_{d}", {begin[d, last]: 1.0, end[d, last]: -1.0}, 0.0, 0.0)


def _one_device_each(model: MipModel) -> None:
    for b in range(model.problem.blocks):
        parts = [model.has(d, b) for d in range(len(model.problem.devices))]
        model.mip.row(f"place_{b}", add(*parts), 1.0, 1.0)


def _reach(model: MipModel) -> None:
    problem = model.problem
    for d in problem.workers:
        for b, first in enumerate(problem.first_starts(d, model.limit)):
            if b and first > 0:
                terms = {model.end[d, b]: 1.0, model.begin[d, first - 1]: -1.0}
                model.mip.row(f"reach_{b}_{d}", terms, lower=0.0)


def _head_memory(model: MipModel) -> None:
    problem, mip = model.problem, model.mip
    begin, end = model.begin, model.end
    returns = problem.first_returns(model.limit)
    alone, last = problem.head_alone(model.limit), problem.blocks - 1
    for stop in range(1, problem.blocks):
        start = returns[stop]
        if start == problem.blocks:
            # Leaves before `stop`, or never: a head that has every block needs no room for messages.
            leaves = {end[HEAD, stop - 1]: 1.0}
            mip.row(
                f"leave_{stop}",
                add(leaves, {end[HEAD, last]: -1.0} if alone else {}),
                lower=0.0 if alone else 1.0,
            )
            break
        # Not ended before stop - 1 means that the first stage ends at `stop` or later.
        mip.row(f"room_{stop}", {end[HEAD, stop - 1]: 1.0, begin[HEAD, start - 1]: -1.0}, lower=0.0)
    if not alone:
        mip.row("share", {end[HEAD, last]: 1.0}, lower=1.0)


def _head_in_group(model: MipModel) -> None:
    """The memory of a head that is in the group: its blocks and its pieces together, activations at their least."""
    problem, mip = model.problem, model.mip
    group, number = problem.group, problem.grouped
    if group is None or number is None or not group.has_head:
        return
    head, last = problem.real.device(problem.real.head), problem.blocks - 1
    active = max(problem.costs[b].activation_bytes for b in (0, last))
    room = head.memory_bytes - head.runtime_bytes - active
    pieces = dict(enumerate(group.stored_by_block[group.devices.index(head.name)]))
    parts = len(group.devices) * min(cut.buffer_bytes for cut in group.cut.values())
    own = (
        scaled(model.has(HEAD, b), float(cost.weights_bytes + cost.cache_bytes))
        for b, cost in enumerate(problem.costs)
    )
    cut = (scaled(model.has(number, b), float(pieces.get(b, 0))) for b in range(problem.blocks))
    buffers = {
        model.end[HEAD, last]: float(in_flight_bytes(problem.flows)),
        model.begin[number, last]: float(parts),
    }
    mip.row("together", scaled(add(*own, *cut, buffers), 1 / max(room, 1)), upper=max(room, 0) / max(room, 1))


def _wishes(model: MipModel) -> None:
    """--use-all and --pin."""
    problem, mip = model.problem, model.mip
    if problem.options.use_all:
        for d in problem.workers:
            mip.row(f"use_{d}", {model.begin[d, problem.blocks - 1]: 1.0}, lower=1.0)
    numbers = {device.name: d for d, device in enumerate(problem.devices)}
    for b, name in sorted(
        {(b, pin.device) for pin in problem.options.pins for b in range(pin.start, pin.stop)}
    ):
        mip.row(f"pin_{b}", model.has(numbers[name], b), 1.0, 1.0)


def _cover(model: MipModel) -> None:
    """Valid inequality: so many workers at least, as each takes no more blocks than its longest stage that fits."""
    problem = model.problem
    count = least_workers(problem, model.limit)
    if count:
        last = problem.blocks - 1
        model.mip.row("cover", {model.begin[d, last]: 1.0 for d in problem.workers}, lower=float(count))


def longest_stages(problem: Problem, limit: float = INFINITY) -> tuple[int, ...]:
    """The most blocks of one stage on each worker, wherever it begins."""
    starts = (problem.first_starts(d, limit) for d in problem.workers)
    return tuple(max(block + 1 - start for block, start in enumerate(first)) for first in starts)


def least_workers(problem: Problem, limit: float = INFINITY) -> int:
    """A lower bound on the number of workers, from the number of blocks; the number of workers + 1: infeasible."""
    if problem.head_alone(limit):
        return 0
    returns = problem.first_returns(limit)
    fitting = [(stop, start) for stop, start in enumerate(returns) if stop and start < problem.blocks]
    head = max((stop + problem.blocks - start for stop, start in fitting), default=0)
    left, count = problem.blocks - head, 0
    for longest in sorted(longest_stages(problem, limit), reverse=True):
        if left <= 0:
            break
        left, count = left - longest, count + 1
    return max(count, 1) if left <= 0 else len(problem.workers) + 1


def _twins(model: MipModel) -> None:
    """Symmetry: of workers that differ in nothing, the first named begins first."""
    problem = model.problem
    for first, second in twins(problem):
        for b in range(1, problem.blocks):
            terms = {model.begin[first, b]: 1.0, model.begin[second, b]: -1.0}
            model.mip.row(f"twin_{b}_{first}_{second}", terms, lower=0.0)


def twins(problem: Problem) -> tuple[Pair, ...]:
    """Pairs of successive workers that may change places without any figure changing."""
    pinned = {pin.device for pin in problem.options.pins}
    return tuple(
        (d, d + 1)
        for d in problem.workers[:-1]
        if d + 1 != problem.grouped
        and not {problem.devices[d].name, problem.devices[d + 1].name} & pinned
        and interchangeable(problem, d, d + 1)
    )


def in_twin_order(problem: Problem, stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """`stages` with interchangeable workers in the one order that `_twins` leaves."""
    names = [device.name for device in problem.devices]
    group = {name: name for name in names}
    for first, second in twins(problem):
        group[names[second]] = group[names[first]]
    unnamed = {leader: iter([name for name in names if group[name] == leader]) for leader in group.values()}
    head = problem.cluster.head
    return tuple(
        stage if stage.lead == head else Stage.on(next(unnamed[group[stage.lead]]), stage.start, stage.stop)
        for stage in stages
    )


def interchangeable(problem: Problem, d: int, e: int) -> bool:
    """Whether two workers may change places without any figure changing."""
    figures = problem.free, problem.disk, problem.block_cost, problem.load
    others = [o for o in range(len(problem.devices)) if o not in (d, e)]
    return (
        all(figure[d] == figure[e] for figure in figures)
        and problem.link(d, e) == problem.link(e, d)
        and all(problem.link(d, o) == problem.link(e, o) for o in others)
        and all(problem.link(o, d) == problem.link(o, e) for o in others)
    )
