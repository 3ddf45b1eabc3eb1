"""Attention over the cache, and rotary positions."""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd

import numpy as np
from tvm import relax, tirx

from llcompile.ir.graph import CacheSpec
from llcompile.lower.emitter import Emitter, OpEmitter
from llcompile.lower.kernels.attention import (
    AttentionSpec,
    Inputs,
    prompt_attention,
    step_attention,
    workspace,
)
from llcompile.lower.kernels.vector import Expr, add, subtract
from llcompile.lower.onnx_graph import Node
from llcompile.lower.values import Index, Loads, Shape, Value, stored


def _attention(emitter: Emitter, node: Node) -> list[Value]:
    """One kernel call that writes the caches and attends: no pass can drop or reorder the write, as the result
    that is used comes from the same call."""
    if not emitter.caches or emitter.position_ids is None or emitter.slots is None:
        raise emitter.error("L116", node, "the template has no cache left, or no position_ids, for it")
    if not node.attributes.get("causal", 1):
        raise emitter.error("L117", node, "only causal attention can be compiled")
    cache, caches = emitter.caches.pop(0)
    slopes = np.asarray(node.attributes.get("alibi", ()), dtype=np.float32)
    spec = _spec(emitter, node, cache, bool(slopes.size))
    inputs = [emitter.value(name) for name in node.inputs[:3]]
    _check_shapes(emitter, node, spec, inputs)
    make = prompt_attention if emitter.function == "prefill" else step_attention
    function, loaded = make(emitter.module.isa.lanes, emitter.extent(), spec, Inputs(*inputs))
    kernel = emitter.module.builder.add_func(function, f"{emitter.template.id}_attention_{emitter.function}")
    slope = relax.const(slopes if slopes.size else np.zeros(1, np.float32))
    arguments = [*loaded, emitter.position_ids, slope, emitter.slots, *caches]
    shape: Shape = (1, "n", spec.heads, spec.value_dim)
    types = [emitter.tensor_type(shape, "float32")]
    if make is step_attention:
        types.append(relax.TensorType(list(workspace(emitter.n, spec)), "float32"))
    places = [*(-1 for _ in types), *range(len(arguments) - len(caches), len(arguments))]
    types += [cache.ty for cache in caches]
    result = emitter.module.builder.emit(relax.op.call_tir_inplace(kernel, arguments, places, types))
    out = stored(shape, "float32", emitter.module.builder.emit(relax.TupleGetItem(result, 0)))
    return [_heads_first(out)]


def _heads_first(x: Value) -> Value:
    """(1, n, H, dv) seen as (1, H, n, dv)."""
    one, n, heads, width = x.shape

    def element(loads: Loads, index: Index) -> Expr:
        zero, head, token, column = index
        return x.at(loads, [zero, token, head, column])

    return Value((one, heads, n, width), x.dtype, element)


def _spec(emitter: Emitter, node: Node, cache: CacheSpec, alibi: bool) -> AttentionSpec:
    return AttentionSpec(
        heads=cache.heads,
        kv_heads=cache.kv_heads,
        key_dim=cache.key_dim,
        value_dim=cache.value_dim,
        context=emitter.module.shapes.context,
        cache=emitter.module.precision.cache,
        scale=float(node.attributes["scale"]),
        window=int(node.attributes.get("window", 0)),
        softcap=float(node.attributes.get("softcap", 0.0)),
        alibi=alibi,
    )


def _check_shapes(emitter: Emitter, node: Node, spec: AttentionSpec, inputs: list[Value]) -> None:
    expected: list[Shape] = [
        (1, spec.heads, "n", spec.key_dim),
        (1, spec.kv_heads, "n", spec.key_dim),
        (1, spec.kv_heads, "n", spec.value_dim),
    ]
    shapes = [value.shape for value in inputs]
    if shapes != expected:
        raise emitter.error("L111", node, f"inputs {shapes} do not fit the cache: expected {expected}")


def _rotary(emitter: Emitter, node: Node) -> list[Value]:
    """Pairs (x[c], x[c + r/2]), or neighbours when interleaved, turned by their angle (RoFormer, eq. 34)."""
    x, cos, sin = (emitter.value(name) for name in node.inputs[:3])
    d = x.shape[-1]
    if len(x.shape) != 4 or len(cos.shape) != 3 or len(node.inputs) > 3 or not isinstance(d, int):
        raise emitter.error("L119", node, f"expected x (1, h, n, d), cos and sin (1, n, r/2), not {x.shape}")
    turned = int(node.attributes.get("rotary_embedding_dim", 0)) or d
    half, interleaved = turned // 2, bool(node.attributes.get("interleaved", 0))
    zero, two = tirx.const(0, "int64"), tirx.const(2, "int64")

    def element(loads: Loads, index: Index) -> Expr:
        _, head, i, c = index

        def turn(first: Expr, second: Expr, angle: Expr, left: bool) -> Expr:
            a, b = (x.at(loads, [zero, head, i, column]) for column in (first, second))
            co, si = (table.at(loads, [zero, i, angle]) for table in (cos, sin))
            return subtract(a * co, b * si) if left else add(a * si, b * co)

        if interleaved:
            pair = tirx.floordiv(c, two)
            sides = [turn(pair * 2, pair * 2 + 1, pair, left) for left in (True, False)]
            result = tirx.if_then_else(tirx.floormod(c, two) < 1, *sides)
        else:
            right = turn(c - half, c, c - half, False)
            result = tirx.if_then_else(c < half, turn(c, c + half, c, True), right)
        if turned == d:
            return result
        return tirx.if_then_else(c < turned, result, x.at(loads, [zero, head, i, c]))

    run = 0 if interleaved else gcd(half, d, x.inner)
    return [Value(x.shape, "float32", element, 4 + x.cost + 2 * (cos.cost + sin.cost), run)]


ATTENTION: Mapping[str, OpEmitter] = {"llcompile.Attention": _attention, "RotaryEmbedding": _rotary}
