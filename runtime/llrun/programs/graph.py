"""The model's graph as a slice describes it: whether it is one, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterator, Set

from llrun.schema import AllReduceKind, GraphGroup, GraphRecord, GroupBlock

SHARES_OFF = 1e-6
# Smaller ones are read as any block: the memory is less than a small model's time for asking for each row (10 us of a
# token's 1.5 ms).
SMALL_TABLE_BYTES = 1 << 20


def check_graph(graph: GraphRecord) -> list[str]:
    """Every violation, in words: tensors and blocks are numbered once, nothing is named that is not described, and
    groups are of several devices, each with its part of every block that they compute."""
    return [*_numbers(graph), *_references(graph), *_groups(graph)]


def _numbers(graph: GraphRecord) -> Iterator[str]:
    ids, names = ({getattr(tensor, key) for tensor in graph.tensors} for key in ("id", "name"))
    if len(ids) != len(graph.tensors) or len(names) != len(graph.tensors):
        yield "the tensor table has a number or a name twice"
    for index, block in enumerate(graph.blocks):
        if block.id != index:
            yield f"block {block.id} stands at {index} of the graph"


def _references(graph: GraphRecord) -> Iterator[str]:
    ids = {tensor.id for tensor in graph.tensors}
    parts = [(f"block {block.id}", (*block.inputs, *block.outputs)) for block in graph.blocks]
    if graph.positions:
        parts.append(("the positions template", (*graph.positions.inputs, *graph.positions.outputs)))
    parts.append(("the graph", (graph.input_ids, graph.position_ids, graph.logits)))
    for group in graph.groups:
        for each in group.blocks:
            made = *each.inputs, *each.partials, *each.sums, *each.tail_inputs
            parts.append((f"block {each.block} of the group {', '.join(group.devices)}", made))
    for name, tensors in parts:
        for tensor in tensors:
            if tensor not in ids:
                yield f"{name} names tensor {tensor}, which is not in the table"


def _groups(graph: GraphRecord) -> Iterator[str]:
    taken = {tensor for block in graph.blocks for tensor in (*block.inputs, *block.outputs)}
    taken |= {graph.input_ids, graph.position_ids, graph.logits}
    taken |= {*graph.positions.inputs, *graph.positions.outputs} if graph.positions else set()
    cut = set[tuple[str, int, int]]()
    for group in graph.groups:
        name, count = f"the group {', '.join(group.devices)}", len(group.devices)
        if count < 2 or len(set(group.devices)) < count:
            yield f"{name} is not of several devices, each named once"
        if len(group.shares) != count or not all(0 < share < 1 for share in group.shares):
            yield f"{name} has the shares {list(group.shares)}, not one between 0 and 1 for each"
        elif abs(sum(group.shares) - 1) > SHARES_OFF:
            yield f"{name} has shares that sum to {sum(group.shares)}, not to 1"
        if group.division >= len(graph.groups):
            yield f"{name} has the division {group.division} of {len(graph.groups)}"
        if group.root >= count:
            yield f"{name} has the root {group.root}, a device of it has a rank below {count}"
        again = {(device, each.block, group.division) for device in group.devices for each in group.blocks}
        if not cut.isdisjoint(again):
            yield f"{name} has pieces that another group has too: its division is {group.division}"
        cut |= again
        numbers = [each.block for each in group.blocks]
        if numbers != sorted(set(numbers)):
            yield f"{name} has its blocks not in order"
        for each in group.blocks:
            yield from (f"{name}: block {each.block} {fault}" for fault in _cut(graph, group, each, taken))


def _cut(graph: GraphRecord, group: GraphGroup, each: GroupBlock, taken: Set[int]) -> Iterator[str]:
    """What is wrong with how a group computes a block. `taken`: tensors that something else is named by."""
    count, last = len(group.devices), len(graph.blocks) - 1
    if not 0 < each.block < last:
        yield f"is not between the first and the last, which are the head's alone: 1 to {last - 1}"
        return
    sums = {AllReduceKind.STAR: 1, AllReduceKind.DIRECT: 0, AllReduceKind.RING: count - 1}[group.all_reduce]
    if (len(each.shards), len(each.partials), len(each.sums)) != (count, count, sums):
        found = f"{len(each.shards)} shards, {len(each.partials)} partials and {len(each.sums)} sums"
        yield f"has {found}, for {group.all_reduce} it is {count}, {count} and {sums}"
    made = [*each.partials, *each.sums]
    if len(set(made)) < len(made) or taken & set(made):
        yield "has a partial or a sum that is another tensor too"
    if not {*each.inputs, *each.tail_inputs} <= {*graph.blocks[each.block].inputs}:
        yield "takes what the block does not take"


def token_arguments(graph: GraphRecord) -> dict[int, int]:
    """For each block that is run on token ids, which argument of its functions they are."""
    return {
        block.id: block.inputs.index(graph.input_ids)
        for block in graph.blocks
        if graph.input_ids in block.inputs
    }
