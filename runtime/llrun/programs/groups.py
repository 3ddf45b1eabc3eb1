"""How a group computes a block: what each of its devices runs of it, and what they tell each other.

A device's piece of block b has an id of its own: its shard B + 2b, the tail B + 2b + 1, B being the number of the
graph's blocks, and 2dB more in division d of the block. So a stage's pieces are one range of ids, as a single device's
blocks are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import assert_never

from llrun.schema import AllReduceKind, GraphBlock, GraphGroup, GraphRecord, GroupBlock, Run, StageRecord

SumWay = tuple[int, int, int]  # tensor, rank that sends, rank that receives


def shard_id(block: int, count: int, division: int = 0) -> int:
    """The id of a shard of `block`; `count`: the number of the graph's blocks."""
    return count + 2 * (division * count + block)


def tail_id(block: int, count: int, division: int = 0) -> int:
    """The id of the tail of `block`; `count`: the number of the graph's blocks."""
    return shard_id(block, count, division) + 1


def block_of(piece: int, count: int) -> int:
    """The block that an id is of: its own, its shard's or its tail's."""
    return piece if piece < count else (piece - count) // 2 % max(count, 1)


def division_of(piece: int, count: int) -> int:
    """The division that an id of a piece is of."""
    return (piece - count) // max(2 * count, 1)


def ids_end(graph: GraphRecord) -> int:
    """No block and no piece has this id or a greater one."""
    return len(graph.blocks) * (3 + 2 * max((group.division for group in graph.groups), default=0))


def is_group(stage: StageRecord) -> bool:
    """Whether several devices compute the stage together."""
    return len(stage.devices) > 1


def held_ids(stage: StageRecord, count: int) -> range:
    """The ids of what each device of a stage runs: whole blocks, or of each the shard and the tail."""
    start, stop = stage.blocks
    if not is_group(stage):
        return range(start, stop)
    return range(shard_id(start, count, stage.division), shard_id(stop, count, stage.division))


def same_group(stage: StageRecord, group: GraphGroup) -> bool:
    """Whether the stage's devices work together as the group does."""
    here = stage.devices, stage.shares, stage.all_reduce, stage.root, stage.division
    return here == (group.devices, group.shares, group.all_reduce, group.root, group.division)


def group_blocks(graph: GraphRecord, stage: StageRecord) -> Mapping[int, GroupBlock] | None:
    """[block]: how the stage's devices compute it together; None where the graph lacks that of a block of the stage."""
    for group in graph.groups:
        blocks = {each.block: each for each in group.blocks}
        if same_group(stage, group) and blocks.keys() >= set(range(*stage.blocks)):
            return blocks
    return None


def finishers(graph: GraphRecord, stages: Sequence[StageRecord], number: int) -> tuple[int, ...]:
    """The ranks that run the last tail of stage `number`, a group: the lead, which sends what it makes, and those that
    use that later themselves."""
    stage = stages[number]
    made = set(graph.blocks[stage.blocks[1] - 1].outputs)
    users: set[str] = {stage.lead}
    for later in stages[number + 1 :]:
        if any(made.intersection(block.inputs) for block in graph.blocks[slice(*later.blocks)]):
            users.update(later.devices)
    return tuple(rank for rank, name in enumerate(stage.devices) if name in users)


def total_of(each: GroupBlock) -> tuple[int, ...]:
    """What the tail takes as the sum: one tensor, or every partial."""
    return each.sums[-1:] or each.partials


def sum_runs(
    kind: AllReduceKind, root: int, each: GroupBlock, block: GraphBlock
) -> tuple[tuple[int, Run], ...]:
    """The sums of a block, each with the rank that makes it."""
    match kind:
        case AllReduceKind.STAR:
            return ((root, _sum(each.partials, each.sums[0], block)),)
        case AllReduceKind.DIRECT:
            return ()
        case AllReduceKind.RING:
            running = each.partials[0], *each.sums
            return tuple(
                (rank, _sum((running[rank - 1], partial), running[rank], block))
                for rank, partial in enumerate(each.partials)
                if rank
            )
        case _:
            assert_never(kind)


def sum_template(count: int) -> str:
    """The template that adds `count` tensors in the order of its arguments."""
    return f"sum_{count}"


def _sum(parts: tuple[int, ...], made: int, block: GraphBlock) -> Run:
    return Run(template=sum_template(len(parts)), block=None, inputs=parts, outputs=(made,), rows=block.rows)


def sum_templates(graph: GraphRecord, device: str) -> frozenset[str]:
    """The templates of the sums that a device may be asked for."""
    named = set[str]()
    for group in graph.groups:
        if device in group.devices:
            rank, count = group.devices.index(device), len(group.devices)
            if group.all_reduce == AllReduceKind.STAR and rank == group.root:
                named.add(sum_template(count))
            if group.all_reduce == AllReduceKind.RING and rank:
                named.add(sum_template(2))
    return frozenset(named)


def sum_ways(kind: AllReduceKind, root: int, each: GroupBlock, ends: Collection[int]) -> tuple[SumWay, ...]:
    """The messages of a block's all-reduce, in the order in which each rank sends. `ends`: the ranks that need the
    sum."""
    ranks = range(len(each.partials))
    match kind:
        case AllReduceKind.STAR:
            up = [(each.partials[rank], rank, root) for rank in ranks if rank != root]
            return *up, *((each.sums[0], root, rank) for rank in ranks if rank in ends and rank != root)
        case AllReduceKind.DIRECT:
            return tuple((each.partials[a], a, b) for a in ranks for b in ranks if b in ends and a != b)
        case AllReduceKind.RING:
            running = each.partials[0], *each.sums
            around = [ranks[-1], *(rank for rank in ranks[:-1] if rank in ends)]
            return *((running[a], a, b) for a, b in pairwise(ranks)), *(
                (running[-1], *way) for way in pairwise(around)
            )
        case _:
            assert_never(kind)


def shard_run(graph: GraphRecord, each: GroupBlock, rank: int, division: int) -> Run:
    """The call of a rank's shard of a block in a division."""
    return Run(
        template=each.shards[rank],
        block=shard_id(each.block, len(graph.blocks), division),
        inputs=each.inputs,
        outputs=(each.partials[rank],),
        rows=graph.blocks[each.block].rows,
    )


def tail_run(graph: GraphRecord, each: GroupBlock, division: int) -> Run:
    """The call of a block's tail in a division."""
    block = graph.blocks[each.block]
    return Run(
        template=each.tail,
        block=tail_id(each.block, len(graph.blocks), division),
        inputs=(*total_of(each), *each.tail_inputs),
        outputs=block.outputs,
        rows=block.rows,
    )


def block_run(block: GraphBlock) -> Run:
    """The call of a block by one device."""
    return Run(
        template=block.template, block=block.id, inputs=block.inputs, outputs=block.outputs, rows=block.rows
    )


def group_runs(
    graph: GraphRecord, stage: StageRecord, blocks: Mapping[int, GroupBlock], rank: int, ends: Collection[int]
) -> Iterator[Run]:
    """What a rank of a group runs of a stage, in order. `ends`: the ranks that run the last tail."""
    assert stage.all_reduce is not None
    for number in range(*stage.blocks):
        each, block = blocks[number], graph.blocks[number]
        yield shard_run(graph, each, rank, stage.division)
        yield from (run for who, run in sum_runs(stage.all_reduce, stage.root, each, block) if who == rank)
        if rank in ends or number < stage.blocks[1] - 1:
            yield tail_run(graph, each, stage.division)


def stage_sums(
    graph: GraphRecord, stages: Sequence[StageRecord], number: int
) -> Iterator[tuple[int, SumWay]]:
    """The messages of all sums of stage `number`, each with its block; none of one that is no group of the graph."""
    stage = stages[number]
    blocks = group_blocks(graph, stage) if is_group(stage) else None
    if blocks is None or stage.all_reduce is None:
        return
    ranks, ends = range(len(stage.devices)), finishers(graph, stages, number)
    for block in range(*stage.blocks):
        last = block == stage.blocks[1] - 1
        for way in sum_ways(stage.all_reduce, stage.root, blocks[block], ends if last else ranks):
            yield block, way
