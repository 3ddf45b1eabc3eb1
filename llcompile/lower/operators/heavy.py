"""Operators with a kernel of their own: products with weights, attention, normalisation, rotary positions."""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd

import numpy as np
from tvm import relax, tirx

from llcompile.ir.packing import GROUP, pad
from llcompile.lower.emitter import Emitter, OpEmitter
from llcompile.lower.kernels.attention import AttentionSpec, attention
from llcompile.lower.kernels.embedding import embedding_float, embedding_quantised
from llcompile.lower.kernels.linear import linear_float, linear_quantised
from llcompile.lower.kernels.norm import layer_norm, rms_norm
from llcompile.lower.kernels.quantise import quantise
from llcompile.lower.kernels.vector import Expr
from llcompile.lower.onnx_graph import Node
from llcompile.lower.operators.elementwise import pointwise
from llcompile.lower.values import Dim, Index, Loads, Shape, Value, stored

_FLOATS = {"f32": "float32", "f16": "float16"}


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
        parts = emitter.call(("quantise", columns), lambda: quantise(emitter.extent(), columns), [x], outputs)
        emitter.quantised[x] = tuple(parts)
    return emitter.quantised[x]


def _linear(emitter: Emitter, node: Node) -> list[Value]:
    x = emitter.value(node.inputs[0])
    (rows, columns), packed, form = _weight(emitter, node, node.inputs[1])
    if x.shape != (1, "n", columns):
        raise emitter.error("L111", node, f"input {x.shape} does not fit weight {(rows, columns)}")
    source, isa, n = emitter.materialise(x), emitter.module.isa, emitter.extent()
    shape: Shape = (1, "n", rows)
    key = (f"linear_{form}", rows, columns)
    if form in _FLOATS:
        make = lambda: linear_float(isa, _FLOATS[form], n, columns, rows)  # noqa: E731
        out = emitter.call(key, make, [source, *packed], [(shape, "float32")])
    else:
        bits = 8 if form == "q8" else 4
        make = lambda: linear_quantised(isa, bits, n, columns, rows)  # noqa: E731
        out = emitter.call(key, make, [*_quantised(emitter, source, columns), *packed], [(shape, "float32")])
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
        make = lambda: embedding_float(_FLOATS[form], n, rows, columns)  # noqa: E731
    else:
        make = lambda: embedding_quantised(n, rows, columns)  # noqa: E731
    shape: Shape = (1, "n", columns)
    out = emitter.call((f"embedding_{form}", rows, columns), make, [*packed, ids], [(shape, "float32")])
    return [stored(shape, "float32", out[0])]


def _attention(emitter: Emitter, node: Node) -> list[Value]:
    q, k, v = (emitter.value(name) for name in node.inputs[:3])
    if not emitter.caches or emitter.position_ids is None:
        raise emitter.error("L116", node, "the template has no cache left, or no position_ids, for it")
    if not node.attributes.get("causal", 1):
        raise emitter.error("L117", node, "only causal attention can be compiled")
    cache, keys, values = emitter.caches.pop(0)
    slopes = np.asarray(node.attributes.get("alibi", ()), dtype=np.float32)
    spec = AttentionSpec(
        heads=cache.heads,
        kv_heads=cache.kv_heads,
        key_dim=cache.key_dim,
        value_dim=cache.value_dim,
        context=emitter.module.context,
        cache_dtype="float32" if emitter.module.quant == "f32" else "float16",
        scale=float(node.attributes["scale"]),
        window=int(node.attributes.get("window", 0)),
        softcap=float(node.attributes.get("softcap", 0.0)),
        alibi=bool(slopes.size),
    )
    arguments = [
        *(emitter.materialise(value) for value in (q, k, v)),
        emitter.position_ids,
        relax.const(slopes if slopes.size else np.zeros(1, np.float32)),
        keys,
        values,
    ]
    shape: Shape = (1, spec.heads, "n", spec.value_dim)
    return [stored(shape, "float32", _call_in_place(emitter, spec, arguments, shape))]


def _call_in_place(
    emitter: Emitter, spec: AttentionSpec, arguments: list[relax.Expr], shape: Shape
) -> relax.Expr:
    """The kernel writes the caches it is given; the result that is used comes from the same call, so that no pass
    can drop the call or move another read of the caches over it."""
    lanes = emitter.module.isa.lanes
    kernel = emitter.module.kernel(
        ("attention", spec, emitter.decode), lambda: attention(lanes, emitter.extent(), spec)
    )
    types = [emitter.tensor_type(shape, "float32")] + [a.ty for a in arguments[-2:]]
    places = [-1, len(arguments) - 2, len(arguments) - 1]
    call = relax.op.call_tir_inplace(kernel, arguments, places, types)
    return emitter.module.builder.emit(relax.TupleGetItem(emitter.module.builder.emit(call), 0))


def _check_last_axis(emitter: Emitter, node: Node, rank: int) -> None:
    if int(node.attributes.get("axis", -1)) not in (-1, rank - 1):
        raise emitter.error("L118", node, "only the last dimension can be normalised")


def _rms_norm(emitter: Emitter, node: Node) -> list[Value]:
    x, weight = emitter.value(node.inputs[0]), emitter.value(node.inputs[1])
    _check_last_axis(emitter, node, len(x.shape))
    n, lanes = emitter.extent(), emitter.module.isa.lanes
    epsilon = float(node.attributes.get("epsilon", 1e-5))
    rows, shape = emitter.rows(x.shape, n)
    out = emitter.call(
        ("rms_norm", x.shape, epsilon),
        lambda: rms_norm(lanes, rows, shape, epsilon),
        [emitter.materialise(x), emitter.materialise(weight)],
        [(x.shape, "float32")],
    )
    return [stored(x.shape, "float32", out[0])]


def _layer_norm(emitter: Emitter, node: Node) -> list[Value]:
    x, weight = emitter.value(node.inputs[0]), emitter.value(node.inputs[1])
    _check_last_axis(emitter, node, len(x.shape))
    n, lanes = emitter.extent(), emitter.module.isa.lanes
    epsilon = float(node.attributes.get("epsilon", 1e-5))
    rows, shape = emitter.rows(x.shape, n)
    if len(node.inputs) > 2 and node.inputs[2]:
        bias = emitter.materialise(emitter.value(node.inputs[2]))
    else:
        bias = relax.const(np.zeros(int(x.shape[-1]), np.float32))
    out = emitter.call(
        ("layer_norm", x.shape, epsilon),
        lambda: layer_norm(lanes, rows, shape, epsilon),
        [emitter.materialise(x), emitter.materialise(weight), bias],
        [(x.shape, "float32")],
    )
    return [stored(x.shape, "float32", out[0])]


def _rotary(emitter: Emitter, node: Node) -> list[Value]:
    """Pairs (x[c], x[c + r/2]), or neighbours when interleaved, turned by an angle of their own (RoFormer, eq. 34)."""
    x, cos, sin = (emitter.value(name) for name in node.inputs[:3])
    if len(x.shape) != 4 or len(cos.shape) != 3 or len(node.inputs) > 3:
        raise emitter.error(
            "L119", node, f"expected x (1, heads, n, d), cos and sin (1, n, r/2), got {x.shape}"
        )
    d = int(x.shape[3])
    turned = int(node.attributes.get("rotary_embedding_dim", 0)) or d
    half, interleaved = turned // 2, bool(node.attributes.get("interleaved", 0))
    zero = tirx.const(0, "int64")

    def element(loads: Loads, index: Index) -> Expr:
        _, head, i, c = index

        def turn(first: Expr, second: Expr, angle: Expr, out_first: bool) -> Expr:
            a, b = x.at(loads, [zero, head, i, first]), x.at(loads, [zero, head, i, second])
            co, si = cos.at(loads, [zero, i, angle]), sin.at(loads, [zero, i, angle])
            return a * co - b * si if out_first else a * si + b * co

        if interleaved:
            pair = tirx.floordiv(c, 2)
            left, right = (turn(pair * 2, pair * 2 + 1, pair, first) for first in (True, False))
            result = tirx.if_then_else(tirx.floormod(c, 2) < 1, left, right)
        else:
            right = turn(c - half, c, c - half, False)
            result = tirx.if_then_else(c < half, turn(c, c + half, c, True), right)
        if turned == d:
            return result
        return tirx.if_then_else(c < turned, result, x.at(loads, [zero, head, i, c]))

    run = gcd(half, d, x.inner) if not interleaved else 0
    return [Value(x.shape, "float32", element, 4 + x.cost + 2 * cos.cost + 2 * sin.cost, run)]


def _matmul(emitter: Emitter, node: Node) -> list[Value]:
    """Product of small tensors made from positions; a product with a weight is llcompile.Linear."""
    a, b = (emitter.value(name) for name in node.inputs)
    depth = a.shape[-1]
    if len(a.shape) != len(b.shape) or not isinstance(depth, int) or depth > 16 or b.shape[-2] != depth:
        raise emitter.error(
            "L120", node, f"cannot multiply {a.shape} by {b.shape}: use llcompile.Linear for weights"
        )
    dims: list[Dim] = [y if x == 1 else x for x, y in zip(a.shape[:-2], b.shape[:-2], strict=True)]
    shape = (*dims, a.shape[-2], b.shape[-1])

    def clamp(value: Value, index: list[Expr]) -> list[Expr]:
        return [tirx.const(0, "int64") if d == 1 else i for d, i in zip(value.shape, index, strict=True)]

    def element(loads: Loads, index: Index) -> Expr:
        *batch, i, j = index
        total = None
        for k in (tirx.const(k, "int64") for k in range(depth)):
            term = a.at(loads, clamp(a, [*batch, i, k])) * b.at(loads, clamp(b, [*batch, k, j]))
            total = term if total is None else total + term
        return total

    return [Value(shape, a.dtype, element, depth * (2 + a.cost + b.cost))]


HEAVY: Mapping[str, OpEmitter] = {
    "llcompile.Linear": _linear,
    "llcompile.Embedding": _embedding,
    "llcompile.Attention": _attention,
    "RMSNormalization": _rms_norm,
    "LayerNormalization": _layer_norm,
    "RotaryEmbedding": _rotary,
    "MatMul": _matmul,
}
