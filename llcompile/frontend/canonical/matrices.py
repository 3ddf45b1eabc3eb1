"""Every use of a weight matrix becomes llcompile.Linear or llcompile.Embedding, over (1, n, features)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from llcompile.frontend.canonical import rewriting as rw


def _transpose_input(weight: ir.Value) -> None:
    """The graph now reads the matrix the other way round than it is stored."""
    assert weight.shape is not None
    weight.shape = ir.Shape(tuple(reversed(tuple(weight.shape))))
    weight.metadata_props[rw.TRANSPOSED] = "1"


def _matrix(value: ir.Value | None) -> tuple[ir.Value, bool] | None:
    """The weight behind a right-hand operand (K, N) of a product, and whether it is stored as (N, K)."""
    if value is None:
        return None
    if rw.is_weight(value) and len(value.shape or ()) == 2:
        return value, False
    transpose = rw.produced_by(value, "Transpose")
    source = transpose.inputs[0] if transpose is not None else None
    if transpose is None or source is None or not rw.is_weight(source):
        return None
    return (source, True) if rw.attribute_ints(transpose, "perm") in (None, (1, 0)) else None


def _gemm_is_plain(node: ir.Node) -> bool:
    factors = (node.attributes.get("alpha"), node.attributes.get("beta"))
    plain = all(f is None or f.as_float() == 1.0 for f in factors)
    return plain and rw.attribute_int(node, "transA", 0) == 0


@dataclass(frozen=True)
class ProductsToLinear:
    """Products with a weight become llcompile.Linear (y = x Wᵀ + b), bias and transpositions drawn in.

    before: y = Add(MatMul(x, Transpose(W)), b)    or    y = Gemm(x, V, b) with V stored (K, N)
    after:  y = llcompile.Linear(x, W, b)                y = llcompile.Linear(x, V', b), V' = (N, K), marked
                                                         as stored the other way round

    A matrix stored (K, N) that something else reads too is left alone (and refused at the end).
    """

    name: ClassVar[str] = "products-to-linear"
    requires: ClassVar[frozenset[str]] = frozenset({"weights-are-inputs"})
    ensures: ClassVar[frozenset[str]] = frozenset({"linear"})

    def run(self, value: ir.Model) -> ir.Model:
        for node in [*rw.nodes(value, "MatMul"), *rw.nodes(value, "Gemm")]:
            matrix = _matrix(node.inputs[1])
            if matrix is None or (node.op_type == "Gemm" and not _gemm_is_plain(node)):
                continue
            weight, stored_rows = matrix
            if node.op_type == "Gemm" and rw.attribute_int(node, "transB", 0):
                stored_rows = not stored_rows
            if not stored_rows:
                if len(list(weight.uses())) > 1:
                    continue
                _transpose_input(weight)
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            operands = [node.inputs[0], weight, *([bias] if bias is not None else [])]
            linear = rw.substitute(node, "Linear", operands, domain=rw.DOMAIN)
            if bias is None:
                self._draw_in_bias(linear)
        return value

    @staticmethod
    def _draw_in_bias(linear: ir.Node) -> None:
        add = rw.only_use(linear.outputs[0])
        if add is None or add.op_type != "Add":
            return
        other = add.inputs[1] if add.inputs[0] is linear.outputs[0] else add.inputs[0]
        weight = linear.inputs[1]
        if other is None or weight is None or not rw.is_weight(other) or weight.shape is None:
            return
        if rw.dims(other) == (weight.shape[0],):
            rw.substitute(add, "Linear", [*linear.inputs, other], domain=rw.DOMAIN)


@dataclass(frozen=True)
class GathersToEmbedding:
    """Rows of a weight table become llcompile.Embedding.

    before: y = Gather(W, ids) along axis 0
    after:  y = llcompile.Embedding(W, ids)
    """

    name: ClassVar[str] = "gathers-to-embedding"
    requires: ClassVar[frozenset[str]] = frozenset({"weights-are-inputs"})
    ensures: ClassVar[frozenset[str]] = frozenset({"embedding"})

    def run(self, value: ir.Model) -> ir.Model:
        for node in rw.nodes(value, "Gather"):
            table = node.inputs[0]
            if (
                rw.is_weight(table)
                and rw.attribute_int(node, "axis", 0) == 0
                and len(rw.dims(table) or ()) == 2
            ):
                rw.substitute(node, "Embedding", node.inputs, domain=rw.DOMAIN)
        return value


_ROWWISE = frozenset(
    {
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Pow",
        "Sqrt",
        "Neg",
        "Reciprocal",
        "Exp",
        "Erf",
        "Identity",
        "Cast",
        "CastLike",
    }
) | {"Relu", "Sigmoid", "Tanh", "Gelu"}


def _is_rows(value: ir.Value | None) -> bool:
    """Shape (n, K): the exporter dropped the leading 1."""
    shape = rw.dims(value)
    return shape is not None and len(shape) == 2 and isinstance(shape[0], str)


def _rowwise(node: ir.Node) -> bool:
    """Does `node` mean the same on (1, n, K) as on (n, K)?"""
    if node.op_type == "LayerNormalization":
        return rw.attribute_int(node, "axis", -1) in (-1, 1)
    small = all(_is_rows(v) or len(rw.dims(v) or ()) < 2 for v in node.inputs if v is not None)
    linear = node.domain == rw.DOMAIN and node.op_type == "Linear"
    return node.op_type == "Reshape" or linear or (node.op_type in _ROWWISE and small)


@dataclass(frozen=True)
class RowsToSequences:
    """Stretches over (n, K) become stretches over (1, n, K); the reshapes around them turn into no-ops.

    before: a (n, K) = Reshape(x, [-1, K]); b (n, N) = Linear(a, W); y (1, n, N) = Reshape(b, [1, -1, N])
    after:  a (1, n, K) = Reshape(x, [1, -1, K]); b (1, n, N) = Linear(a, W); y = Reshape(b, [1, -1, N])

    A stretch with a node that does not work row by row is left alone (and refused at the end).
    """

    name: ClassVar[str] = "rows-to-sequences"
    requires: ClassVar[frozenset[str]] = frozenset({"linear", "static-shapes"})
    ensures: ClassVar[frozenset[str]] = frozenset({"sequences"})

    def run(self, value: ir.Model) -> ir.Model:
        touched = [n for n in value.graph if any(map(_is_rows, n.outputs)) or any(map(_is_rows, n.inputs))]
        if not all(map(_rowwise, touched)):
            return value
        for node in touched:
            for out in node.outputs:
                if _is_rows(out) and out.shape is not None:
                    self._lift(value, node, out)
        return value

    @staticmethod
    def _lift(model: ir.Model, node: ir.Node, out: ir.Value) -> None:
        assert out.shape is not None
        rows, width = out.shape
        out.shape = ir.Shape((1, rows, width))
        if node.op_type == "LayerNormalization":
            node.attributes.add(ir.AttrInt64("axis", -1))
        if node.op_type == "Reshape":
            shape = np.array([1, -1, width], np.int64)
            node.replace_input_with(1, rw.add_constant(model, f"shape_1xnx{width}", shape))
