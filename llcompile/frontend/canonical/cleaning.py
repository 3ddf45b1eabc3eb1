"""What does nothing goes: no-ops, duplicates, unused nodes, sequences in place of splits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    RemoveUnusedNodesPass,
)

from llcompile.frontend.canonical import rewriting as rw

_INT64_MAX = np.iinfo(np.int64).max


def _same_type(node: ir.Node) -> bool:
    source, result = node.inputs[0], node.outputs[0]
    return source is not None and source.dtype is not None and source.dtype == result.dtype


def _same_shape(node: ir.Node) -> bool:
    shape = rw.dims(node.outputs[0])
    return shape is not None and shape == rw.dims(node.inputs[0])


def _forwards(node: ir.Node) -> ir.Value | None:
    """The input that `node` hands on unchanged; None when it computes something."""
    op, first = node.op_type, node.inputs[0] if node.inputs else None
    if op == "Identity" or (op in ("Cast", "CastLike") and _same_type(node)):
        return first
    if op in ("Reshape", "Expand") or (op == "Slice" and _keeps_order(node)):
        return first if _same_shape(node) else None
    if op == "Concat":
        return first if len(node.inputs) == 1 else None
    if op == "Transpose":
        perm = rw.attribute_ints(node, "perm")
        return first if perm is not None and perm == tuple(range(len(perm))) else None
    if op in ("Mul", "Div") and _same_shape(node) and rw.scalar(node.inputs[1]) == 1.0:
        return first
    if op in ("Add", "Sub") and _same_shape(node) and rw.scalar(node.inputs[1]) == 0.0:
        return first
    return None


def _shorten(node: ir.Node) -> ir.Node:
    """A reshape reads past another one; a concatenation leaves out what is empty."""
    inner = rw.produced_by(node.inputs[0], "Reshape") if node.op_type == "Reshape" else None
    if inner is not None:
        node.replace_input_with(0, inner.inputs[0])
    if node.op_type == "Concat" and any(0 in (rw.dims(v) or ()) for v in node.inputs):
        parts = [v for v in node.inputs if 0 not in (rw.dims(v) or ())]
        return rw.substitute(node, "Concat", parts, {"axis": rw.attribute_int(node, "axis", 0)})
    return node


def _keeps_order(node: ir.Node) -> bool:
    steps = rw.integers(node.inputs[4]) if len(node.inputs) > 4 else (1,)
    return steps is not None and all(s == 1 for s in steps)


@dataclass(frozen=True)
class DropNoOps:
    """Nodes that hand on an input unchanged go, and so do reshapes of reshapes and empty parts.

    before: a = Identity(x); b = Cast(a) to its own type; c = Mul(b, 1); d = Reshape(Reshape(c, s), t)
    after:  d = Reshape(x, t)
    """

    name: ClassVar[str] = "drop-no-ops"
    requires: ClassVar[frozenset[str]] = frozenset({"constants-are-initializers"})
    ensures: ClassVar[frozenset[str]] = frozenset()

    def run(self, value: ir.Model) -> ir.Model:
        for original in rw.nodes(value):
            node = _shorten(original)
            source = _forwards(node)
            if source is None or (node.outputs[0].is_graph_output() and source.is_graph_input()):
                continue
            rw.replace(node.outputs[0], source)
            value.graph.remove(node, safe=True)
        return value


@dataclass(frozen=True)
class DropUnused:
    """Equal nodes and equal constants become one; nodes, constants and weight inputs that nothing reads go.

    before: a = Unsqueeze(x); b = Unsqueeze(x); c = Shape(x); y = Add(a, b)
    after:  a = Unsqueeze(x); y = Add(a, a)
    """

    name: ClassVar[str] = "drop-unused"
    requires: ClassVar[frozenset[str]] = frozenset({"weights-are-inputs"})
    ensures: ClassVar[frozenset[str]] = frozenset()

    def run(self, value: ir.Model) -> ir.Model:
        DeduplicateInitializersPass()(value)
        CommonSubexpressionEliminationPass()(value)
        RemoveUnusedNodesPass()(value)
        kept = [v for v in value.graph.inputs if v.uses() or not rw.is_weight(v)]
        value.graph.inputs[:] = kept
        return value


@dataclass(frozen=True)
class SequencesToSplits:
    """Lists of slices become one Split.

    before: s = SplitToSequence(x, 96); a = SequenceAt(s, 0); b = SequenceAt(s, 1)
    after:  a, b = Split(x, [96, 96])
    """

    name: ClassVar[str] = "sequences-to-splits"
    requires: ClassVar[frozenset[str]] = frozenset({"constants-are-initializers"})
    ensures: ClassVar[frozenset[str]] = frozenset()

    def run(self, value: ir.Model) -> ir.Model:
        for node in rw.nodes(value, "SplitToSequence"):
            axis = rw.attribute_int(node, "axis", 0)
            shape, sizes = rw.dims(node.inputs[0]), rw.integers(node.inputs[1])
            uses = [use.node for use in node.outputs[0].uses()]
            if shape is None or sizes is None or any(u.op_type != "SequenceAt" for u in uses):
                continue
            total = shape[axis]
            if not isinstance(total, int):
                continue
            if len(sizes) == 1:
                sizes = tuple(min(sizes[0], total - at) for at in range(0, total, sizes[0]))
            self._split(value, node, uses, sizes, axis % len(shape))
        return value

    def _split(
        self, model: ir.Model, node: ir.Node, uses: list[ir.Node], sizes: tuple[int, ...], axis: int
    ) -> None:
        source = node.inputs[0]
        assert source is not None
        operand = rw.add_constant(model, f"{node.name}_sizes", np.array(sizes, np.int64))
        like = [self._part(node, source, i, size, axis) for i, size in enumerate(sizes)]
        split = rw.insert(node, "Split", [source, operand], like, {"axis": axis})
        for use in uses:
            index = rw.integers(use.inputs[1])
            assert index is not None
            rw.replace(use.outputs[0], split.outputs[index[0]])
            model.graph.remove(use, safe=True)
        model.graph.remove(node, safe=True)

    @staticmethod
    def _part(node: ir.Node, source: ir.Value, index: int, size: int, axis: int) -> ir.Value:
        assert source.shape is not None
        shape = list(source.shape)
        shape[axis] = size
        return ir.Value(name=f"{node.outputs[0].name}_{index}", type=source.type, shape=ir.Shape(shape))
