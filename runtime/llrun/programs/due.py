"""What each run of a set of programs is to be: of whole blocks, and of the pieces that a group runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llrun.programs.effects import Effects
from llrun.programs.groups import (
    block_of,
    division_of,
    ids_end,
    shard_id,
    shard_run,
    sum_runs,
    tail_id,
    tail_run,
)
from llrun.schema import GraphBlock, GraphGroup, GraphRecord, GroupBlock, Run


@dataclass(frozen=True)
class Due:
    """A run as the graph has it. `words`: what people call it; `block`: whose rows it takes, of positions none's."""

    words: str
    template: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    block: GraphBlock | None


@dataclass(frozen=True)
class Teams:
    """Which groups compute what. `devices`: [block] those that have pieces of it; `groups`, `cuts`: [block] the group
    that these are, and how it computes the block; `sums`: [device, what it makes] every sum that is due."""

    devices: Mapping[int, frozenset[str]]
    groups: Mapping[int, GraphGroup]
    cuts: Mapping[int, GroupBlock]
    sums: Mapping[tuple[str, tuple[int, ...]], Due]

    @classmethod
    def of(cls, graph: GraphRecord, effects: Mapping[str, Sequence[Effects]]) -> Teams:
        """The groups that programs with these effects are of. Of groups of the same devices, the one most of whose runs
        are there."""
        count, devices, divisions = len(graph.blocks), dict[int, set[str]](), dict[int, set[int]]()
        made: dict[int, set[tuple[str, tuple[int, ...], tuple[int, ...]]]] = {}
        for device, done in effects.items():
            for does in done:
                piece = does.runs if does.runs is not None else does.loads
                if piece is not None and count <= piece < ids_end(graph):
                    devices.setdefault(block_of(piece, count), set()).add(device)
                    divisions.setdefault(block_of(piece, count), set()).add(division_of(piece, count))
                if does.calls:
                    for tensor in does.uses:
                        made.setdefault(tensor, set()).add((device, does.uses, does.makes))
        groups, cuts = dict[int, GraphGroup](), dict[int, GroupBlock]()
        sums: dict[tuple[str, tuple[int, ...]], Due] = {}
        for block, names in sorted(devices.items()):
            fits = [
                (g, c)
                for g in graph.groups
                for c in g.blocks
                if c.block == block and names <= {*g.devices} and divisions[block] == {g.division}
            ]
            if not fits:
                continue
            groups[block], cuts[block] = max(fits, key=lambda fit: _found(graph, fit[0], fit[1], made))
            for rank, run in _sums(graph, groups[block], cuts[block]):
                words = f"the sum {run.template} of block {block}"
                due = Due(words, run.template, run.inputs, run.outputs, graph.blocks[block])
                sums[groups[block].devices[rank], run.outputs] = due
        return cls({block: frozenset(names) for block, names in devices.items()}, groups, cuts, sums)


def due_of(graph: GraphRecord, teams: Teams, device: str, piece: int) -> Due | None:
    """What the run of a whole block or of a piece is to be on a device; None for one that the graph does not have."""
    count = len(graph.blocks)
    if piece < count:
        block = graph.blocks[piece]
        return Due(f"block {piece}", block.template, block.inputs, block.outputs, block)
    number = block_of(piece, count)
    group, cut = teams.groups.get(number), teams.cuts.get(number)
    if group is None or cut is None or device not in group.devices:
        return None
    rank, division = group.devices.index(device), group.division
    if piece == shard_id(number, count, division):
        run, words = shard_run(graph, cut, rank, division), f"the shard of block {number}"
    elif piece == tail_id(number, count, division):
        run, words = tail_run(graph, cut, division), f"the tail of block {number}"
    else:
        return None
    return Due(words, run.template, run.inputs, run.outputs, graph.blocks[number])


def _sums(graph: GraphRecord, group: GraphGroup, cut: GroupBlock) -> Iterable[tuple[int, Run]]:
    return sum_runs(group.all_reduce, group.root, cut, graph.blocks[cut.block])


def _found(
    graph: GraphRecord,
    group: GraphGroup,
    cut: GroupBlock,
    made: Mapping[int, set[tuple[str, tuple[int, ...], tuple[int, ...]]]],
) -> tuple[int, int]:
    """How many of a group's sums and tails of a block are run as it would, and then: how few devices it has."""
    tail = tail_run(graph, cut, group.division)
    due = [(group.devices[rank], run.inputs, run.outputs) for rank, run in _sums(graph, group, cut)]
    due += [(name, tail.inputs, tail.outputs) for name in group.devices]
    return sum(each in made.get(each[1][0], ()) for each in due), -len(group.devices)
