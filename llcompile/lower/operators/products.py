"""Products with packed weights, rows of tables, and small products of tensors made from positions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from tvm import relax, tirx

from llcompile.ir.packing import GROUP, pad
from llcompile.lower.emitter import Emitter, OpEmitter
from llcompile.lower.kernels.embedding import embedding_float, embedding_quantised
from llcompile.lower.kernels.linear import linear_float, linear_quantised
from llcompile.lower.kernels.quantise import quantise
from llcompile.lower.kernels.vector import Expr
from llcompile.lower.onnx_graph import Node
from llcompile.lower.operators.elementwise import pointwise
from llcompile.lower.values import Dim, Index, Loads, Shape, Value, stored

_FLOATS = {"f32": "float32", "f16": "float16"}
_BITS = {"q8": 8, "q4": 4}
_MOST_TERMS = 16  # of a product of position tensors


def _weight(emitter: Emitter, node: Node, name: str) -> tuple[tuple[int, ...], list[relax.Var], str]:
    """Shape of weight `name`, its packed tensors, and their format."""
    if name not in emitter.packed:
        raise emitter.error("L115", node, f"{name!r} is not a weight of the template")
    entries = emitter.packed[name]
    shape = emitter.template.weights[entries[0][0].weight].shape
    return shape, [variable for _, variable in entries], entries[0][0].layout.format


def _quantised(emitter: Emitter, x: relax.Expr, columns: int) -> tuple[relax.Expr, ...]:
    """Activations in int8: made once for all products that read them."""
    if x not in emitter.quantised:
        groups = pad(columns, GROUP) // GROUP
        outputs: list[tuple[Shape, str]] = [
            (("n", groups, GROUP), "int8"),
            (("n", groups), "float32"),
            (("n", groups), "int32"),
        ]
        make = partial(quantise, emitter.extent(), columns)
        emitter.quantised[x] = tuple(emitter.call(f"quantise_{columns}", None, make, [x], outputs))
    return emitter.quantised[x]


def _linear(emitter: Emitter, node: Node) -> list[Value]:
    x = emitter.value(node.inputs[0])
    (rows, columns), packed, form = _weight(emitter, node, node.inputs[1])
    if x.shape != (1, "n", columns):
        raise emitter.error("L111", node, f"input {x.shape} does not fit weight {(rows, columns)}")
    source, isa, n = emitter.materialise(x), emitter.module.isa, emitter.extent()
    shape: Shape = (1, "n", rows)
    if form in _FLOATS:
        make, arguments = partial(linear_float, isa, _FLOATS[form], n, columns, rows), [source]
    else:
        make = partial(linear_quantised, isa, _BITS[form], n, columns, rows)
        arguments = list(_quantised(emitter, source, columns))
    name = f"linear_{form}_{rows}x{columns}"
    out = emitter.call(name, None, make, [*arguments, *packed], [(shape, "float32")])
    product = stored(shape, "float32", out[0])
    if len(node.inputs) < 3 or not node.inputs[2]:
        return [product]
    bias = emitter.value(node.inputs[2])
    return [pointwise(emitter, node, [product, bias], "float32", 1, lambda a, b: a + b)]


def _embedding(emitter: Emitter, node: Node) -> list[Value]:
    (rows, columns), packed, form = _weight(emitter, node, node.inputs[0])
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
            result = result + term
        return result

    shape = (*batch, a.shape[-2], b.shape[-1])
    return [Value(shape, a.dtype, element, depth * (2 + a.cost + b.cost))]


PRODUCTS: Mapping[str, OpEmitter] = {
    "llcompile.Linear": _linear,
    "llcompile.Embedding": _embedding,
    "MatMul": _matmul,
}
