"""The model's graph as a slice describes it: whether it is one, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterator

from llrun.schema import GraphRecord


def check_graph(graph: GraphRecord) -> list[str]:
    """Every violation, in words: tensors and blocks are numbered once, and nothing is named that is not described."""
    return [*_numbers(graph), *_references(graph)]


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
    for name, tensors in parts:
        for tensor in tensors:
            if tensor not in ids:
                yield f"{name} names tensor {tensor}, which is not in the table"


def token_arguments(graph: GraphRecord) -> dict[int, int]:
    """For each block that is run on token ids, which argument of its functions they are."""
    return {
        block.id: block.inputs.index(graph.input_ids)
        for block in graph.blocks
        if graph.input_ids in block.inputs
    }
