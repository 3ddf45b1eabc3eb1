"""A template's ONNX text as plain nodes: what the emitter needs, nothing of protobuf."""

from __future__ import annotations

from collections.abc import Mapping
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
    nodes: tuple[Node, ...]
    constants: Mapping[str, Array]
    uses: Mapping[str, int]


def read_graph(template: Template) -> OnnxGraph:
    """Nodes in order, constants (initializers and Constant nodes), and how often each tensor is used."""
    model = onnx.load_from_string(template.onnx)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    nodes = []
    for proto in model.graph.node:
        node = _node(proto)
        if node.op == "Constant":
            constants[node.outputs[0]] = _constant(node)
        else:
            nodes.append(node)
    uses: dict[str, int] = {}
    for name in [i for n in nodes for i in n.inputs] + [o.name for o in model.graph.output]:
        uses[name] = uses.get(name, 0) + 1
    return OnnxGraph(tuple(nodes), constants, uses)


def _node(proto: onnx.NodeProto) -> Node:
    prefix = f"{DOMAIN}." if proto.domain == DOMAIN else ""
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
    return Node(prefix + proto.op_type, proto.name, tuple(proto.input), tuple(proto.output), attributes)


def _constant(node: Node) -> Array:
    key, value = next(iter(node.attributes.items()))
    if key == "value":
        return np.asarray(numpy_helper.to_array(value))
    return np.asarray(value, dtype="float32" if key.startswith("value_float") else "int64")
