"""Weights become inputs, constants become initializers, shapes become static."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from llcompile.frontend.canonical import rewriting as rw


@dataclass(frozen=True)
class WeightsToInputs:
    """Parameters and persistent buffers become graph inputs under their checkpoint names.

    before: initializer "model.layer.weight" (no value)    MatMul(x, model.layer.weight)
    after:  graph input "layer.weight"                     MatMul(x, layer.weight)

    `names`: checkpoint name by the exporter's name; one that is missing keeps the exporter's.
    """

    names: Mapping[str, str]
    name: ClassVar[str] = "weights-to-inputs"
    requires: ClassVar[frozenset[str]] = frozenset()
    ensures: ClassVar[frozenset[str]] = frozenset({"weights-are-inputs"})

    def run(self, value: ir.Model) -> ir.Model:
        graph = value.graph
        for old, weight in list(graph.initializers.items()):
            kind, kept = weight.metadata_props.get(rw.KIND), weight.metadata_props.get(rw.PERSISTENT)
            if kind != "PARAMETER" and not (kind == "BUFFER" and kept == "True"):
                continue
            del graph.initializers[old]
            if not weight.uses():
                continue
            weight.const_value = None
            weight.name = self.names.get(old, old)
            weight.metadata_props[rw.WEIGHT] = "1"
            graph.inputs.append(weight)
        return value


def _reshape(inputs: list[rw.Array], _node: ir.Node) -> rw.Array:
    return inputs[0].reshape([int(d) for d in inputs[1]])


def _cast(inputs: list[rw.Array], node: ir.Node) -> rw.Array:
    return inputs[0].astype(ir.DataType(rw.attribute_int(node, "to", 1)).numpy())


def _concat(inputs: list[rw.Array], node: ir.Node) -> rw.Array:
    return np.concatenate(inputs, axis=rw.attribute_int(node, "axis", 0))


_FOLDS: dict[str, Callable[[list[rw.Array], ir.Node], rw.Array]] = {
    "Reshape": _reshape,
    "Cast": _cast,
    "Concat": _concat,
    "Identity": lambda xs, _: xs[0],
    "Unsqueeze": lambda xs, _: np.expand_dims(xs[0], tuple(int(a) for a in xs[1])),
    "Squeeze": lambda xs, _: np.squeeze(xs[0], tuple(int(a) for a in xs[1]) if len(xs) > 1 else None),
    "Neg": lambda xs, _: np.negative(xs[0]),
    "Add": lambda xs, _: np.add(xs[0], xs[1]),
    "Sub": lambda xs, _: np.subtract(xs[0], xs[1]),
    "Mul": lambda xs, _: np.multiply(xs[0], xs[1]),
    "Sqrt": lambda xs, _: np.sqrt(xs[0]),
    "Reciprocal": lambda xs, _: np.reciprocal(xs[0]),
}


@dataclass(frozen=True)
class FoldConstants:
    """Nodes over constants alone become initializers; weights have no values here, so nothing large is.

    before: a = Constant(3); b = Cast(a); c = Reshape(b, [-1]); y = Slice(x, ..., c)
    after:  y = Slice(x, ..., c)     with initializer c = [3]
    """

    name: ClassVar[str] = "fold-constants"
    requires: ClassVar[frozenset[str]] = frozenset({"weights-are-inputs"})
    ensures: ClassVar[frozenset[str]] = frozenset({"constants-are-initializers"})

    def run(self, value: ir.Model) -> ir.Model:
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(value)
        for node in rw.nodes(value):
            inputs = [rw.constant(v) for v in node.inputs]
            fold = _FOLDS.get(node.op_type)
            if fold is None or node.domain or not inputs or any(x is None for x in inputs):
                continue
            array = fold([x for x in inputs if x is not None], node)
            folded = rw.add_constant(value, str(node.outputs[0].name), array)
            rw.replace(node.outputs[0], folded)
            value.graph.remove(node, safe=True)
        return value


@dataclass(frozen=True)
class StaticShapes:
    """Shape operands are read off the shapes the exporter proved: a symbolic dimension is written -1.

    before: s = Concat([1], Reshape(Squeeze(Shape(ids))), [-1], [16]); y (1, n, 6, 16) = Reshape(x, s)
    after:  y = Reshape(x, [1, -1, 6, 16])

    Reshapes whose result has two symbolic dimensions are left as they are (and refused at the end).
    """

    name: ClassVar[str] = "static-shapes"
    requires: ClassVar[frozenset[str]] = frozenset({"constants-are-initializers"})
    ensures: ClassVar[frozenset[str]] = frozenset({"static-shapes"})

    def run(self, value: ir.Model) -> ir.Model:
        made: dict[tuple[int, ...], ir.Value] = {}
        for node in rw.nodes(value, "Reshape"):
            shape = rw.dims(node.outputs[0])
            if shape is None or sum(isinstance(d, str) for d in shape) > 1:
                continue
            static = tuple(d if isinstance(d, int) else -1 for d in shape)
            if static not in made:
                text = "x".join("n" if d < 0 else str(d) for d in static)
                made[static] = rw.add_constant(value, f"shape_{text}", np.array(static, np.int64))
            node.replace_input_with(1, made[static])
            node.attributes.pop("allowzero", None)
        return value
