"""Rows of tables, and small products of tensors made from positions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from tvm import tirx

from llcompile.lower.emitter import Emitter, OpEmitter
from llcompile.lower.kernels.embedding import embedding_float, embedding_quantised
from llcompile.lower.kernels.vector import Expr, add
from llcompile.lower.onnx_graph import Node
from llcompile.lower.operators.linear import weight_of
from llcompile.lower.values import Dim, Index, Loads, Shape, Value, stored

_FLOATS = {"f32": "float32", "f16": "float16"}
_MOST_TERMS = 16  # of a product of position tensors


def _embedding(emitter: Emitter, node: Node) -> list[Value]:
    (rows, columns), packed, form = weight_of(emitter, node, node.inputs[0])
    ids = emitter.materialise(emitter.value(node.inputs[1]))
    n = emitter.extent()
    if form in _FLOATS:
        make = partial(embedding_float, _FLOATS[form], n, rows, columns)
    else:
        make = partial(embedding_quantised, n, rows, columns)
    shape: Shape = (1, "n", columns)
    name = f"embedding_{form}_{rows}x{columns}"
    out = emitter.call(name, None, make, [*packed, ids], [(shape, "float32")])
    return [stored(shape, "float32", out[0])]


def _matmul(emitter: Emitter, node: Node) -> list[Value]:
    """Angles are positions times frequencies; a product with a weight is llcompile.Linear."""
    a, b = (emitter.value(name) for name in node.inputs)
    depth = a.shape[-1]
    fits = len(a.shape) == len(b.shape) >= 2 and b.shape[-2] == depth
    if not fits or not isinstance(depth, int) or depth > _MOST_TERMS:
        reason = f"cannot multiply {a.shape} by {b.shape}: a product with a weight must be llcompile.Linear"
        raise emitter.error("L120", node, reason)
    batch: list[Dim] = [y if x == 1 else x for x, y in zip(a.shape[:-2], b.shape[:-2], strict=True)]

    def clamp(value: Value, index: list[Expr]) -> list[Expr]:
        return [tirx.const(0, "int64") if d == 1 else i for d, i in zip(value.shape, index, strict=True)]

    def element(loads: Loads, index: Index) -> Expr:
        *outer, i, j = index
        terms = [
            a.at(loads, clamp(a, [*outer, i, k])) * b.at(loads, clamp(b, [*outer, k, j]))
            for k in (tirx.const(k, "int64") for k in range(depth))
        ]
        result = terms[0]
        for term in terms[1:]:
            result = add(result, term)
        return result

    shape = (*batch, a.shape[-2], b.shape[-1])
    return [Value(shape, a.dtype, element, depth * (2 + a.cost + b.cost))]


PRODUCTS: Mapping[str, OpEmitter] = {
    "llcompile.Embedding": _embedding,
    "MatMul": _matmul,
}
