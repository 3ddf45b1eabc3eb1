"""Dtype and shape of every tensor, with the number of new tokens as the symbol "n".

Shapes are inferred twice, at two lengths: a dimension that keeps its size is a number, one that follows the
length is n. That needs no symbolic arithmetic (an inferred Reshape to -1 over a symbol is lost), and finds
any dimension that is neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, shape_inference

from llcompile.dataflow.nodes import (
    ATTENTION,
    EMBEDDING,
    INPUT_IDS,
    LINEAR,
    POSITION_IDS,
    Dataflow,
    Node,
)
from llcompile.ir.errors import CompileError
from llcompile.ir.graph import DTYPE_BYTES, TensorSpec

Shape = tuple[int, ...]
Typed = tuple[str, Shape]  # dtype, shape
LENGTHS = (5, 7)


def infer_specs(flow: Dataflow) -> dict[str, TensorSpec]:
    """Specs of all tensors of `flow`. Raises CompileError G104 with the operator whose shape cannot be
    known."""
    short, long = (_Inference(flow, length).run() for length in LENGTHS)
    return {name: _symbolic(name, short[name], long[name]) for name in short}


def _symbolic(name: str, short: Typed, long: Typed) -> TensorSpec:
    dims: list[int | str] = []
    for a, b in zip(short[1], long[1], strict=True):
        if a != b and (a, b) != LENGTHS:
            raise CompileError(
                "G104",
                f"tensor {name}: a dimension is {a} for {LENGTHS[0]} tokens and {b} for {LENGTHS[1]}",
                1,
            )
        dims.append(a if a == b else "n")
    return TensorSpec(name, short[0], tuple(dims))


@dataclass
class _Inference:
    """One walk over the nodes at a fixed length. Equal nodes over equal shapes are asked for once."""

    flow: Dataflow
    length: int
    known: dict[str, Typed] = field(default_factory=dict)
    seen: dict[tuple[object, ...], list[Typed]] = field(default_factory=dict)

    def run(self) -> Mapping[str, Typed]:
        self.known = {name: ("int64", (1, self.length)) for name in (INPUT_IDS, POSITION_IDS)}
        self.known.update((name, ("float32", shape)) for name, shape in self.flow.weights.items())
        for name, spec in self.flow.given.items():
            self.known[name] = spec.dtype, tuple(d if isinstance(d, int) else self.length for d in spec.shape)
        for name, tensor in self.flow.constants.items():
            self.known[name] = (_dtype(name, tensor.data_type), tuple(tensor.dims))
        for node in self.flow.nodes:
            outputs = self._outputs(node)
            self.known.update(
                (name, typed) for name, typed in zip(node.outputs, outputs, strict=True) if name
            )
        return self.known

    def _outputs(self, node: Node) -> list[Typed]:
        inputs = [self.known[name] if name else None for name in node.inputs]
        values = tuple(_content(self.flow.constants.get(name)) for name in node.inputs)
        key = (node.op, node.attributes, tuple(inputs), values, tuple(bool(name) for name in node.outputs))
        if key not in self.seen:
            rule = RULES.get(node.op)
            self.seen[key] = [rule(node, self.known)] if rule else _standard(node, self.known, self.flow)
        return self.seen[key]


def _content(tensor: onnx.TensorProto | None) -> bytes | None:
    return None if tensor is None else tensor.SerializeToString(deterministic=True)


def _dtype(name: str, data_type: int) -> str:
    dtype: str = np.dtype(helper.tensor_dtype_to_np_dtype(data_type)).name
    if dtype not in DTYPE_BYTES:
        raise CompileError("G104", f"tensor {name} has dtype {dtype}, known are {', '.join(DTYPE_BYTES)}", 1)
    return dtype


def _standard(node: Node, known: Mapping[str, Typed], flow: Dataflow) -> list[Typed]:
    """By ONNX's own inference, from the shapes of the inputs and the values of the constant ones."""
    opsets = {entry.domain: entry.version for entry in flow.header.opset_import}
    domain, _, kind = node.op.rpartition(".")
    proto = node.to_proto()
    types = {
        name: helper.make_tensor_type_proto(
            helper.np_dtype_to_tensor_dtype(np.dtype(known[name][0])), known[name][1]
        )
        for name in node.inputs
        if name
    }
    data = {name: flow.constants[name] for name in node.inputs if name in flow.constants}
    try:
        schema = onnx.defs.get_schema(kind, opsets.get(domain, 0), domain)
        inferred = shape_inference.infer_node_outputs(
            schema,
            proto,
            types,
            data,
            opset_imports=list(flow.header.opset_import),
            ir_version=flow.header.ir_version,
        )
        return [_concrete(name, inferred[name]) if name else ("float32", ()) for name in node.outputs]
    except (onnx.defs.SchemaError, shape_inference.InferenceError, KeyError, ValueError) as error:
        shapes = ", ".join(f"{name} {known[name]}" for name in node.inputs if name)
        message = f"operator {node.op} at {node.outputs[0]}: no shape follows from {shapes} ({error})"
        raise CompileError("G104", message, 1) from error


def _concrete(name: str, inferred: onnx.TypeProto) -> Typed:
    tensor = inferred.tensor_type
    if not tensor.HasField("shape") or any(not dim.HasField("dim_value") for dim in tensor.shape.dim):
        raise ValueError("a dimension depends on values")
    return _dtype(name, tensor.elem_type), tuple(dim.dim_value for dim in tensor.shape.dim)


def _linear(node: Node, known: Mapping[str, Typed]) -> Typed:
    (dtype, x), (_, w) = known[node.inputs[0]], known[node.inputs[1]]
    if len(w) != 2 or x[-1] != w[1]:
        raise _mismatch(node, f"input ({x[-1]} features)", f"weight {node.inputs[1]} {w}")
    if len(node.inputs) > 2 and node.inputs[2] and known[node.inputs[2]][1] != (w[0],):
        raise _mismatch(node, f"bias {known[node.inputs[2]][1]}", f"weight {node.inputs[1]} {w}")
    return dtype, (*x[:-1], w[0])


def _embedding(node: Node, known: Mapping[str, Typed]) -> Typed:
    (dtype, w), (_, ids) = known[node.inputs[0]], known[node.inputs[1]]
    if len(w) != 2:
        raise _mismatch(node, f"table of rank {len(w)}", "rank 2")
    return dtype, (*ids, w[1])


def _attention(node: Node, known: Mapping[str, Typed]) -> Typed:
    (dtype, q), (_, k), (_, v) = (known[name] for name in node.inputs[:3])
    if not len(q) == len(k) == len(v) == 4 or q[3] != k[3] or k[:3] != v[:3] or q[1] % k[1]:
        raise _mismatch(node, f"queries {q}", f"keys {k} and values {v}")
    return dtype, (*q[:3], v[3])


def _mismatch(node: Node, found: str, wanted: str) -> CompileError:
    return CompileError("G104", f"operator {node.op} at {node.outputs[0]}: {found} does not fit {wanted}", 1)


RULES: Mapping[str, Callable[[Node, Mapping[str, Typed]], Typed]] = {
    LINEAR: _linear,
    EMBEDDING: _embedding,
    ATTENTION: _attention,
}
