"""ONNX graphs as text, one node a line: `name: op(inputs) {attributes} -> outputs`."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

_SMALL = 8


def _shape(value: ir.Value) -> str:
    if value.shape is None:
        return "?"
    return "(" + ", ".join(str(d) if isinstance(d, int) else str(d.value) for d in value.shape) + ")"


def _value(value: ir.Value) -> str:
    return f"{value.name} {_shape(value)}"


def _attribute(attribute: ir.Attr) -> str:
    value = attribute.value
    return f"{attribute.name} = {list(value) if isinstance(value, tuple) else value}"


def _constant(value: ir.Value) -> str:
    tensor = value.const_value
    if tensor is None:
        return "without a value"
    try:
        flat = tensor.numpy().reshape(-1)
    except RuntimeError:  # a weight as the exporter has it, a tensor that is none
        return "without a value"
    text = ", ".join(f"{x:.7g}" for x in flat[:_SMALL].tolist())
    return f"[{text}{', ...' if flat.size > _SMALL else ''}]"


def _node(node: ir.Node) -> str:
    op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    inputs = ", ".join("" if v is None else str(v.name) for v in node.inputs)
    attributes = ", ".join(sorted(_attribute(a) for a in node.attributes.values()))
    outputs = ", ".join(map(_value, node.outputs))
    return f"{node.name}: {op}({inputs}){f' {{{attributes}}}' if attributes else ''} -> {outputs}"


def _lines(model: ir.Model) -> Iterator[str]:
    graph = model.graph
    yield from (f"input {_value(v)}" for v in graph.inputs)
    for name in sorted(graph.initializers):
        constant = graph.initializers[name]
        yield f"constant {_value(constant)} = {_constant(constant)}"
    yield from map(_node, graph)
    yield from (f"output {_value(v)}" for v in graph.outputs)


def text(model: ir.Model) -> str:
    """The whole graph, inputs and constants first. The same graph gives the same text."""
    return "\n".join(_lines(model)) + "\n"
