"""The dataflow graph as every device knows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llcompile.ir.check import INPUT_IDS, LOGITS, POSITION_IDS
from llcompile.ir.errors import INTERNAL, CompileError
from llcompile.ir.graph import Block, Graph, TensorSpec
from llcompile.ir.plan import Stage
from llcompile.ir.shard import Group, partial_name, sum_name
from llrun import schema
from llrun.schema import AllReduceKind


def graph_record(
    graph: Graph, wires: Mapping[str, schema.WireFormat] | None = None, groups: Sequence[Group] = ()
) -> schema.GraphRecord:
    """The graph with its tensors numbered: model inputs, what the positions template makes, every block's outputs; and
    behind them the parts and sums of the blocks that `groups` compute.
    `wires`: the formats of tensors that travel in another than their own.

    Raises CompileError B130 (exit 1) for a graph without `logits`, or with a tensor whose size depends on the context:
    such a tensor cannot be sent.
    """
    tensors = tuple(
        schema.Tensor(
            id=i,
            name=spec.name,
            dtype=spec.dtype,
            shape=tuple(_dimension(spec, d) for d in spec.shape),
            wire=(wires or {}).get(spec.name, schema.WireFormat.F32),
        )
        for i, spec in enumerate((_specs(graph) | _summed(groups)).values())
    )
    ids = {tensor.name: tensor.id for tensor in tensors}
    if LOGITS not in ids:
        raise CompileError("B130", f"the graph has no tensor {LOGITS}", INTERNAL)
    return schema.GraphRecord(
        tensors=tensors,
        blocks=tuple(
            schema.GraphBlock(
                id=block.id,
                template=block.template,
                inputs=tuple(ids[name] for name in block.inputs),
                outputs=tuple(ids[name] for name in block.outputs),
                rows=schema.Rows.LAST if block.last_row_only else schema.Rows.ALL,
            )
            for block in graph.blocks
        ),
        positions=_positions(graph, ids),
        input_ids=ids[INPUT_IDS],
        position_ids=ids[POSITION_IDS],
        logits=ids[LOGITS],
        groups=tuple(_group(group, graph, ids) for group in groups),
    )


def _group(group: Group, graph: Graph, ids: Mapping[str, int]) -> schema.GraphGroup:
    stage = group.stage
    assert stage.all_reduce is not None
    return schema.GraphGroup(
        devices=stage.devices,
        shares=stage.shares,
        all_reduce=stage.all_reduce,
        root=stage.root,
        blocks=tuple(_group_block(group, graph.blocks[block], ids) for block in stage.blocks),
        division=stage.division,
    )


def _group_block(group: Group, block: Block, ids: Mapping[str, int]) -> schema.GroupBlock:
    pieces, inputs = group.blocks[block.id], [ids[name] for name in block.inputs]
    (taken,) = {shard.inputs for shard in pieces.shards}
    return schema.GroupBlock(
        block=block.id,
        shards=tuple(shard.template.id for shard in pieces.shards),
        inputs=tuple(inputs[number] for number in taken),
        partials=tuple(ids[partial_name(block.id, rank)] for rank in range(len(pieces.shards))),
        sums=tuple(ids[name] for name in _sums(group.stage, block.id)),
        tail=pieces.tail.template.id,
        tail_inputs=tuple(inputs[number] for number in pieces.tail.inputs),
    )


def _sums(stage: Stage, block: int) -> list[str]:
    """The sums that a block's tail waits for, the last of which it takes."""
    counts = {AllReduceKind.STAR: 1, AllReduceKind.RING: len(stage.devices) - 1, AllReduceKind.DIRECT: 0}
    return [sum_name(block, number) for number in range(counts[stage.all_reduce] if stage.all_reduce else 0)]


def _summed(groups: Sequence[Group]) -> dict[str, TensorSpec]:
    """Parts and sums by name, block after block."""
    return {
        name: TensorSpec(name, spec.dtype, spec.shape)
        for group in groups
        for block, pieces in group.blocks.items()
        for spec in pieces.shards[0].template.outputs
        for name in (
            *(partial_name(block, rank) for rank in range(len(pieces.shards))),
            *_sums(group.stage, block),
        )
    }


def _positions(graph: Graph, ids: Mapping[str, int]) -> schema.GraphPositions | None:
    template = graph.positions
    if template is None:
        return None
    return schema.GraphPositions(
        template=template.id,
        inputs=tuple(ids[spec.name] for spec in template.inputs),
        outputs=tuple(ids[spec.name] for spec in template.outputs),
    )


def _specs(graph: Graph) -> dict[str, TensorSpec]:
    specs = {name: TensorSpec(name, "int64", (1, "n")) for name in (INPUT_IDS, POSITION_IDS)}
    for spec in graph.positions.outputs if graph.positions else ():
        specs[spec.name] = spec
    for block in graph.blocks:
        for name, spec in zip(block.outputs, graph.templates[block.template].outputs, strict=True):
            specs[name] = TensorSpec(name, spec.dtype, spec.shape)
    return specs


def _dimension(spec: TensorSpec, size: int | str) -> int:
    if size == "c":
        raise CompileError(
            "B130", f"tensor {spec.name} is of the cache's length and crosses a block boundary", INTERNAL
        )
    return -1 if isinstance(size, str) else size
