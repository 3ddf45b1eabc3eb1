"""A node as a function on numpy arrays: ONNX's reference, and our own where that is missing or slow.

Of domain llcompile, Linear and Embedding are not here: their matrices are not in memory (walk.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
from onnx.reference import ReferenceEvaluator

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
# From a node's inputs, None for one that is left out, to its outputs.
Operator = Callable[[Sequence[Array | None]], Sequence[Array]]


def operator_of(node: onnx.NodeProto, opsets: Mapping[str, int]) -> Operator:
    """What `node` computes; domain "" has the version that `opsets` says."""
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.domain == "llcompile":
        return lambda inputs: [attention(*cast("Sequence[Floats]", inputs), **given)]  # none may be left out
    if node.op_type == "Gelu":
        return lambda inputs: [gelu(*cast("Sequence[Floats]", inputs), **given)]
    names = [name for name in dict.fromkeys(node.input) if name]
    graph = onnx.helper.make_graph(
        [node],
        "node",
        [onnx.ValueInfoProto(name=name) for name in names],
        [onnx.ValueInfoProto(name=name) for name in node.output],
    )
    evaluator = ReferenceEvaluator(graph, opsets=dict(opsets))

    def run(inputs: Sequence[Array | None]) -> Sequence[Array]:
        given = dict(zip(node.input, inputs, strict=True))
        made: list[Array] = evaluator.run(None, {name: given[name] for name in names})
        return made

    return run


def attention(
    q: Floats,
    k: Floats,
    v: Floats,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    alibi: Sequence[float] = (),
    layer: int = 0,
    causal: int = 1,
) -> Floats:
    """llcompile.Attention on an empty cache, as the frontend's docstring defines it: (1, H, n, dv).

    `layer` and `causal` are for readers of the graph.
    """
    _, heads, n, dim = q.shape
    kv_heads = k.shape[1]
    scores = (q[0] * np.float32(scale)).reshape(kv_heads, -1, dim) @ k[0].transpose(0, 2, 1)
    if softcap:
        scores = np.float32(softcap) * np.tanh(scores / np.float32(softcap))
    by_head = scores.reshape(heads, n, n)
    if any(alibi):
        by_head += np.asarray(alibi, np.float32)[:, None, None] * np.arange(n, dtype=np.float32)
    distance = np.arange(n)[:, None] - np.arange(n)
    by_head += np.where((distance >= 0) & ((distance < window) | (window == 0)), 0, -np.inf).astype(
        np.float32
    )
    np.exp(by_head - by_head.max(-1, keepdims=True), out=by_head)
    by_head /= by_head.sum(-1, keepdims=True)
    mixed: Floats = by_head.reshape(kv_heads, -1, n) @ v[0]
    return mixed.reshape(1, heads, n, -1)


def gelu(x: Floats, *, approximate: bytes = b"none") -> Floats:
    """ONNX's Gelu. Its reference finds the error function number by number, which takes seconds a layer."""
    if approximate == b"tanh":
        bend = np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x))
    else:
        bend = erf(x * np.float32(math.sqrt(0.5)))
    value: Floats = np.float32(0.5) * x * (1 + bend)
    return value


def erf(x: Floats) -> Floats:
    """The error function to 5e-7: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26."""
    t = 1 / (1 + np.float32(0.3275911) * np.abs(x))
    tail = np.zeros_like(t)
    for coefficient in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail = (tail + np.float32(coefficient)) * t
    value: Floats = np.copysign(1 - tail * np.exp(-x * x), x)
    return value
