"""Element-wise operators with numpy's broadcasting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import zip_longest
from math import pi, sqrt

import numpy as np
import onnx
from tvm import tirx

from llcompile.lower.emitter import Emitter, OpEmitter
from llcompile.lower.kernels.vector import Expr, add, cos, erf, exp, let, sigmoid, sin, splat, subtract, tanh
from llcompile.lower.onnx_graph import Node
from llcompile.lower.values import Dim, Index, Loads, Shape, Value, run_length

_COSTLY = 20  # operations of a transcendental function


def broadcast_shape(emitter: Emitter, node: Node, shapes: list[Shape]) -> Shape:
    """numpy's rule; "n" only meets "n" and 1."""
    result: list[Dim] = []
    for dims in zip_longest(*(reversed(s) for s in shapes), fillvalue=1):
        wide = {d for d in dims if d != 1}
        if len(wide) > 1:
            raise emitter.error("L111", node, f"shapes {', '.join(map(str, shapes))} do not broadcast")
        result.append(wide.pop() if wide else 1)
    return tuple(reversed(result))


def broadcast_at(value: Value, loads: Loads, index: Index) -> Expr:
    """The element of `value` for `index` of the broadcast shape."""
    own = list(index)[len(index) - len(value.shape) :]
    return value.at(
        loads, [tirx.const(0, "int64") if d == 1 else i for d, i in zip(value.shape, own, strict=True)]
    )


def pointwise(
    emitter: Emitter, node: Node, inputs: list[Value], dtype: str, cost: int, compute: Callable[..., Expr]
) -> Value:
    shape = broadcast_shape(emitter, node, [v.shape for v in inputs])

    def element(loads: Loads, index: Index) -> Expr:
        return compute(*(broadcast_at(v, loads, index) for v in inputs))

    wide = [v for v in inputs if v.shape and shape and v.shape[-1] == shape[-1]]
    inner = run_length(wide, shape[-1]) if wide else 0
    return Value(shape, dtype, element, cost + sum(v.cost for v in inputs), inner)


def _simple(compute: Callable[..., Expr], cost: int = 1, dtype: str | None = None) -> OpEmitter:
    def emit(emitter: Emitter, node: Node) -> list[Value]:
        inputs = [emitter.value(name) for name in node.inputs if name]
        return [pointwise(emitter, node, inputs, dtype or inputs[-1].dtype, cost, compute)]

    return emit


def _float(compute: Callable[[Expr], Expr], cost: int) -> OpEmitter:
    """A function of one float32 argument, which is computed once."""
    return _simple(lambda x: let(x, compute), cost)


def _divide(a: Expr, b: Expr) -> Expr:
    return a / b if str(a.ty).startswith("float") else tirx.truncdiv(a, b)


def _fold(combine: Callable[[Expr, Expr], Expr]) -> Callable[..., Expr]:
    def compute(*terms: Expr) -> Expr:
        result = terms[0]
        for term in terms[1:]:
            result = combine(result, term)
        return result

    return compute


def _power(emitter: Emitter, node: Node) -> list[Value]:
    base, exponent = (emitter.value(name) for name in node.inputs)
    known = {
        2.0: lambda x: x * x,
        3.0: lambda x: x * x * x,
        0.5: tirx.sqrt,
        -0.5: lambda x: splat(1.0, x) / tirx.sqrt(x),
        -1.0: lambda x: splat(1.0, x) / x,
        1.0: lambda x: x,
    }
    number = float(exponent.constant.reshape(-1)[0]) if exponent.constant is not None else None
    if number not in known or exponent.constant is None or exponent.constant.size != 1:
        raise emitter.error(
            "L112", node, f"the exponent must be one of the constants {sorted(known)}, not {number}"
        )
    return [pointwise(emitter, node, [base], base.dtype, 3, lambda x: let(x, known[number]))]


def _gelu(emitter: Emitter, node: Node) -> list[Value]:
    approximate = node.attributes.get("approximate", b"none") == b"tanh"
    x = emitter.value(node.inputs[0])

    def by_tanh(v: Expr) -> Expr:
        inside = (v + v * v * v * splat(0.044715, v)) * splat(sqrt(2 / pi), v)
        return splat(0.5, v) * v * (splat(1.0, v) + tanh(inside))

    def by_erf(v: Expr) -> Expr:
        return splat(0.5, v) * v * (splat(1.0, v) + erf(v * splat(sqrt(0.5), v)))

    compute = by_tanh if approximate else by_erf
    return [pointwise(emitter, node, [x], x.dtype, _COSTLY, lambda v: let(v, compute))]


def _cast(emitter: Emitter, node: Node) -> list[Value]:
    x = emitter.value(node.inputs[0])
    dtype = str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(node.attributes["to"])))
    result = pointwise(emitter, node, [x], dtype, 1, lambda v: tirx.Cast(dtype, v) if x.dtype != dtype else v)
    result.constant = None if x.constant is None else x.constant.astype(dtype)
    return [result]


def _clip(emitter: Emitter, node: Node) -> list[Value]:
    result = emitter.value(node.inputs[0])
    for name, bound in zip(node.inputs[1:], (tirx.max, tirx.min), strict=False):
        if name:
            result = pointwise(emitter, node, [result, emitter.value(name)], result.dtype, 1, bound)
    return [result]


def _identity(emitter: Emitter, node: Node) -> list[Value]:
    return [emitter.values[node.inputs[0]]]


ELEMENTWISE: Mapping[str, OpEmitter] = {
    "Add": _simple(add),
    "Sub": _simple(subtract),
    "Mul": _simple(lambda a, b: a * b),
    "Div": _simple(_divide, 4),
    "Min": _simple(_fold(tirx.min)),
    "Max": _simple(_fold(tirx.max)),
    "Neg": _simple(lambda x: -x),
    "Abs": _simple(tirx.abs),
    "Sqrt": _simple(tirx.sqrt, 4),
    "Reciprocal": _simple(lambda x: splat(1.0, x) / x, 4),
    "Relu": _simple(lambda x: tirx.max(x, splat(0, x))),
    "Exp": _float(exp, _COSTLY),
    "Sigmoid": _float(sigmoid, _COSTLY),
    "Tanh": _float(tanh, _COSTLY),
    "Erf": _float(erf, _COSTLY),
    "Cos": _float(cos, _COSTLY),
    "Sin": _float(sin, _COSTLY),
    "Less": _simple(lambda a, b: a < b, dtype="bool"),
    "LessOrEqual": _simple(lambda a, b: a <= b, dtype="bool"),
    "Greater": _simple(lambda a, b: a > b, dtype="bool"),
    "GreaterOrEqual": _simple(lambda a, b: a >= b, dtype="bool"),
    "Equal": _simple(lambda a, b: a.equal(b) if hasattr(a, "equal") else a == b, dtype="bool"),
    "Where": _simple(lambda c, a, b: tirx.Select(c, a, b)),
    "Pow": _power,
    "Gelu": _gelu,
    "Cast": _cast,
    "Clip": _clip,
    "Identity": _identity,
}
