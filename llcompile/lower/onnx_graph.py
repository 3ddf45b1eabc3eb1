"""A template's ONNX text as plain nodes: what the emitter needs, nothing of protobuf."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from llcompile.ir.graph import Template

Array = NDArray[Any]
DOMAIN = "llcompile"


@dataclass(frozen=True)
class Node:
    """An operator; `op` bears the prefix `llcompile.` for this project's own domain."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class OnnxGraph:
    """`readers`: for each tensor its uses, (operator, number of the input); a template's output is an ("", 0)."""

    nodes: tuple[Node, ...]
    constants: Mapping[str, Array]
    outputs: tuple[str, ...]
    readers: Mapping[str, tuple[tuple[str, int], ...]]


def read_graph(template: Template) -> OnnxGraph:
    """Nodes in order, constants (initializers and Constant nodes), and where each tensor is used."""
    model = onnx.load_from_string(template.onnx)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    nodes = []
    for proto in model.graph.node:
        node = _node(proto)
        if node.op == "Constant":
            constants[node.outputs[0]] = _constant(node)
        else:
            nodes.append(node)
    outputs = tuple(o.name for o in model.graph.output)
    return OnnxGraph(tuple(nodes), constants, outputs, readers_of(nodes, outputs))


def readers_of(nodes: Iterable[Node], outputs: Iterable[str]) -> dict[str, tuple[tuple[str, int], ...]]:
    """For each tensor where it is used (OnnxGraph.readers)."""
    readers: dict[str, list[tuple[str, int]]] = {name: [("", 0)] for name in outputs}
    for node in nodes:
        for position, name in enumerate(node.inputs):
            readers.setdefault(name, []).append((node.op, position))
    return {name: tuple(uses) for name, uses in readers.items()}


def _node(proto: onnx.NodeProto) -> Node:
    prefix = f"{DOMAIN}." if proto.domain == DOMAIN else ""
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
    return Node(prefix + proto.op_type, proto.name, tuple(proto.input), tuple(proto.output), attributes)


def _constant(node: Node) -> Array:
    key, value = next(iter(node.attributes.items()))
    if key == "value":
        return np.asarray(numpy_helper.to_array(value))
    return np.asarray(value, dtype="float32" if key.startswith("value_float") else "int64")
