"""Runs the pieces of a block with onnxruntime, as a group would: what the tail makes must be what the block makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llcompile.ir.graph import Block, Graph, Template
from llcompile.ir.shard import Piece, ShardedBlock, WeightCut
from llcompile.shard import sum_template
from tests.unit.graph.oracle import all_tensors, session

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A block of a model with the values of its inputs, weights and outputs."""

    template: Template
    inputs: Sequence[np.ndarray]
    weights: Sequence[np.ndarray]
    outputs: Sequence[np.ndarray]


def cases(graph: Graph, ids: Arrays, weights: Arrays) -> dict[str, Case]:
    """A block of each template but the first's and the last's, by the template's id."""
    tensors = all_tensors(graph, ids, weights)

    def case(block: Block) -> Case:
        inputs, outputs = ([tensors[name] for name in names] for names in (block.inputs, block.outputs))
        own = [weights[name] for name in block.weights]
        return Case(graph.templates[block.template], inputs, own, outputs)

    return {block.template: case(block) for block in graph.blocks[1:-1]}


def cut(weight: np.ndarray, by: WeightCut) -> np.ndarray:
    if by.axis is None:
        return weight
    index = np.concatenate([np.arange(*r) for r in by.ranges])
    return weight.take(index, axis=by.axis)


def run(piece: Piece, case: Case, parts: Sequence[np.ndarray] = ()) -> list[np.ndarray]:
    template = piece.template
    given = [*parts, *(case.inputs[i] for i in piece.inputs)]
    feeds = {spec.name: array for spec, array in zip(template.inputs, given, strict=True)}
    for weight, by in zip(template.weights, piece.cuts, strict=True):
        feeds[weight.name] = cut(case.weights[by.weight], by)
        assert feeds[weight.name].shape == weight.shape
    return session(template.onnx).run([spec.name for spec in template.outputs], feeds)


def together(case: Case, pieces: ShardedBlock) -> list[np.ndarray]:
    """The block's outputs by its pieces; where the tail takes one, by a template that sums."""
    parts = [run(shard, case)[0] for shard in pieces.shards]
    if pieces.sums == 1:
        template = sum_template(pieces.tail.template.inputs[0], len(parts))
        feeds = {spec.name: part for spec, part in zip(template.inputs, parts, strict=True)}
        parts = session(template.onnx).run([template.outputs[0].name], feeds)
    return run(pieces.tail, case, parts)


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())
