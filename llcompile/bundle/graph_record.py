"""The dataflow graph as every device knows it."""

from __future__ import annotations

from collections.abc import Mapping

from llcompile.ir.check import INPUT_IDS, LOGITS, POSITION_IDS
from llcompile.ir.errors import INTERNAL, CompileError
from llcompile.ir.graph import Graph, TensorSpec
from llrun import schema


def graph_record(graph: Graph, wires: Mapping[str, schema.WireFormat] | None = None) -> schema.GraphRecord:
    """The graph with its tensors numbered: model inputs, what the positions template makes, every block's outputs.
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
        for i, spec in enumerate(_specs(graph).values())
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
    )


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
