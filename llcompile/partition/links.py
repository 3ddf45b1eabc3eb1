"""The MIP's part about links: who hands over to whom, what travels, and what keeps devices and links busy."""

from __future__ import annotations

from llcompile.ir.cluster import Link
from llcompile.ir.plan import Flow
from llcompile.partition.model import MipModel, Pair, add, flow_key, scaled
from llcompile.partition.problem import HEAD, Problem

# Uses of tensors that skip blocks, by pairs of devices: with more, the text would take longer than the search.
COPIES = 20_000
# Columns of one block and pair of devices each; with more, `hop` stands for `move`.
MOVES = 16_000


def _hop_cost(problem: Problem, block: int, link: Link) -> float:
    return problem.latency_cost(link) + problem.bytes_cost(problem.hop_flows[block], link)


def add_cuts(model: MipModel) -> None:
    """All links alike: a cut costs the same between any two devices, so that `begin` alone carries the cost."""
    problem, mip = model.problem, model.mip
    if len(problem.devices) == 1:
        return
    link = problem.link(0, 1)
    for b in range(1, problem.blocks):
        devices = range(len(problem.devices))
        cost = _hop_cost(problem, b, link)
        cut = mip.column(f"cut_{b}", cost)
        here = ({model.begin[d, b]: -1.0, model.begin[d, b - 1]: 1.0} for d in devices)
        mip.row(f"cuts_{b}", add({cut: 1.0}, *here), 0.0, 0.0)
        busy = problem.busy(problem.hop_flows[b], link)
        mip.row(f"line_{b}", {model.slowest: 1.0, cut: -busy / mip.scale}, lower=0.0)


def add_moves(model: MipModel) -> None:
    problem, mip = model.problem, model.mip
    for b in range(1, problem.blocks):
        for d, e in model.pairs():
            cost = _hop_cost(problem, b, problem.link(d, e))
            model.move[b, d, e] = mip.column(f"move_{b}_{d}_{e}", cost)
        for d in range(len(problem.devices)):
            others = [e for e in range(len(problem.devices)) if e != d]
            left = {model.move[b, d, e]: 1.0 for e in others}
            joined = {model.move[b, e, d]: 1.0 for e in others}
            ends = {model.end[d, b]: -1.0, model.end[d, b - 1]: 1.0}
            begins = {model.begin[d, b]: -1.0, model.begin[d, b - 1]: 1.0}
            mip.row(f"from_{b}_{d}", add(left, ends), 0.0, 0.0)
            mip.row(f"to_{b}_{d}", add(joined, begins), 0.0, 0.0)


def compact(problem: Problem) -> bool:
    """Whether a column for every block and pair of devices would be too many."""
    count = len(problem.devices)
    return not problem.uniform and count * (count - 1) * problem.blocks > MOVES


def too_many_copies(problem: Problem) -> bool:
    """Whether a row for every pair of devices and every use of a tensor that skips blocks would be too many."""
    count, uses = len(problem.devices), sum(len(flow.consumers) for flow in problem.long_flows)
    return count * (count - 1) * uses > COPIES


def add_hops(model: MipModel) -> None:
    """Moves of many devices: hop[c,d,e] is 1 when d hands over to e before a block of class c.

    A class is the blocks that equal tensors enter. A hop says that e begins where d ends, by the numbers of blocks
    before both: weaker than `move` when relaxed, and the same in whole numbers.
    """
    problem, mip, count = model.problem, model.mip, len(model.problem.devices)
    classes = hop_classes(problem)
    for c, blocks in enumerate(classes):
        for d, e in model.pairs():
            cost = _hop_cost(problem, blocks[0], problem.link(d, e))
            model.hop[c, d, e] = mip.column(f"hop_{c}_{d}_{e}", cost, integer=True)
        for d in range(count):
            others = [e for e in range(count) if e != d]
            ends = [{model.end[d, b]: -1.0, model.end[d, b - 1]: 1.0} for b in blocks]
            begins = [{model.begin[d, b]: -1.0, model.begin[d, b - 1]: 1.0} for b in blocks]
            mip.row(f"from_{c}_{d}", add({model.hop[c, d, e]: 1.0 for e in others}, *ends), 0.0, 0.0)
            mip.row(f"to_{c}_{d}", add({model.hop[c, e, d]: 1.0 for e in others}, *begins), 0.0, 0.0)
    ended = [_blocks_before(model, model.end, "ended", d) for d in range(count)]
    begun = [_blocks_before(model, model.begin, "begun", d) for d in range(count)]
    size = float(problem.blocks)
    for d, e in model.pairs():
        hops = {model.hop[c, d, e]: -size for c in range(len(classes))}
        apart = {ended[d]: 1.0, begun[e]: -1.0}
        mip.row(f"after_{d}_{e}", add(hops, apart), lower=-size)
        mip.row(f"until_{d}_{e}", add(hops, scaled(apart, -1.0)), lower=-size)


def _blocks_before(model: MipModel, steps: dict[Pair, int], name: str, device: int) -> int:
    """A column that is the number of blocks before the step of `device`."""
    mip, size = model.mip, float(model.problem.blocks)
    column = mip.column(f"{name}_{device}", upper=size)
    terms = {steps[device, b]: 1.0 for b in range(model.problem.blocks)}
    mip.row(f"{name}_at_{device}", add(terms, {column: 1.0}), size, size)
    return column


def hop_classes(problem: Problem) -> list[list[int]]:
    """The blocks after the first by the sizes of the tensors that enter them alone."""
    classes: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for b in range(1, problem.blocks):
        sizes = tuple(sorted((flow.decode_bytes, flow.prefill_bytes) for flow in problem.hop_flows[b]))
        classes.setdefault(sizes, []).append(b)
    return list(classes.values())


def add_copies(model: MipModel, flow: Flow) -> None:
    """`copy` and `skip` of one flow that more than the next block uses."""
    problem, mip = model.problem, model.mip
    key = flow_key(problem, flow)
    for d, e in model.pairs():
        link = problem.link(d, e)
        copy = mip.column(f"copy_{key}_{d}_{e}", problem.bytes_cost([flow], link))
        skip = mip.column(f"skip_{key}_{d}_{e}", problem.latency_cost(link))
        model.copy[flow.tensor, d, e], model.skip[flow.tensor, d, e] = copy, skip
        there = _had_in_group(model, flow, (d, e))
        for c in flow.consumers:
            between = {model.move[b, d, e]: -1.0 for b in range(flow.producer + 1, c + 1) if model.move}
            # Who has the producer and hands over to who has the consumer does so between them.
            between |= {hop: -1.0 for (_, *pair), hop in model.hop.items() if pair == [d, e]}
            here = add(model.has(d, flow.producer), model.has(e, c), {model.constant: -1.0}, there)
            mip.row(f"copies_{key}_{d}_{e}_{c}", add({copy: 1.0}, scaled(here, -1.0)), lower=0.0)
            mip.row(
                f"skips_{key}_{d}_{e}_{c}",
                add({skip: 1.0}, scaled(here, -1.0), scaled(between, -1.0)),
                lower=0.0,
            )
        if model.move:
            _direct_copies(model, flow, copy, (d, e), there)


def _had_in_group(model: MipModel, flow: Flow, pair: Pair) -> dict[int, float]:
    """-1 or less where the head had the tensor as a member of a group that used it."""
    group, number = model.problem.group, model.problem.grouped
    if group is None or number is None or not group.has_head or pair[1] != HEAD or pair[0] == number:
        return {}
    return add(*(scaled(model.has(number, block), -1.0) for block in flow.consumers))


def _direct_copies(model: MipModel, flow: Flow, copy: int, pair: Pair, there: dict[int, float]) -> None:
    """Valid inequality: a hop from d to e before a consumer carries the tensor.

    Unless d began after its producer, or e had it.
    """
    d, e = pair
    for c in flow.consumers:
        hop, was = {model.move[c, d, e]: -1.0}, {model.begin[d, flow.producer]: -1.0}
        terms = add({copy: 1.0}, hop, {model.begin[d, c - 1]: 1.0}, was, scaled(there, -1.0))
        model.mip.row(f"direct_{copy}_{c}", terms, lower=0.0)


def add_busy(model: MipModel) -> None:
    """`slowest` is no less than what each device and each link is busy."""
    problem, mip = model.problem, model.mip
    unit = {model.slowest: mip.scale}
    blocks = range(problem.blocks)
    for d in range(len(problem.devices)):
        together = [d, HEAD] if d == problem.grouped and problem.group and problem.group.has_head else [d]
        loads = (scaled(model.has(e, b), -problem.load[e][b]) for e in together for b in blocks)
        mip.row(f"device_{d}", scaled(add(unit, *loads), 1 / mip.scale), lower=0.0)
    classes = hop_classes(problem)
    for d, e in model.pairs() if model.move or model.hop else ():
        link = problem.link(d, e)
        if model.move:
            hops = {model.move[b, d, e]: -problem.busy(problem.hop_flows[b], link) for b in blocks if b}
        else:
            sizes = (problem.busy(problem.hop_flows[same[0]], link) for same in classes)
            hops = {model.hop[c, d, e]: -size for c, size in enumerate(sizes)}
        sent = [flow for flow in problem.long_flows if (flow.tensor, d, e) in model.copy]
        copies = {model.copy[flow.tensor, d, e]: -problem.busy([flow], link) for flow in sent}
        mip.row(f"link_{d}_{e}", scaled(add(unit, hops, copies), 1 / mip.scale), lower=0.0)
    if problem.weights.by_token:
        _token_row(model)


def _token_row(model: MipModel) -> None:
    """`slowest` is no less than a token's seconds / sequences. A token's seconds: the other costs / their weight."""
    mip, problem = model.mip, model.problem
    factor = 1 / (problem.weights.token * problem.weights.sequences)
    costs = {i: -column.cost * factor for i, column in enumerate(mip.columns) if i != model.slowest}
    mip.row("token", scaled(add({model.slowest: mip.scale}, costs), 1 / mip.scale), lower=0.0)
