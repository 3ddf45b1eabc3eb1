"""A dataflow as text, for dumps and goldens."""

from __future__ import annotations

import onnx
from onnx import helper, numpy_helper

from llcompile.dataflow.nodes import Dataflow, Node

SHOWN_ELEMENTS = 8


def print_dataflow(flow: Dataflow) -> str:
    """Weights, constants and nodes, one a line; of a large constant only its dtype and shape."""
    lines = [f"weight {name}: {list(shape)}" for name, shape in flow.weights.items()]
    lines += [f"constant {name} = {_constant(tensor)}" for name, tensor in flow.constants.items()]
    lines += [_node(node, flow) for node in flow.nodes]
    return "\n".join(lines) + "\n"


def _constant(tensor: onnx.TensorProto) -> str:
    array = numpy_helper.to_array(tensor)
    value = f" {array.tolist()}" if array.size <= SHOWN_ELEMENTS else ""
    return f"{array.dtype.name}{list(array.shape)}{value}"


def _node(node: Node, flow: Dataflow) -> str:
    kind = flow.kinds[node.outputs[0]].value
    attributes = "".join(f", {name}={_attribute(value)}" for name, value in node.attributes)
    return f"{kind} {', '.join(node.outputs)} = {node.op}({', '.join(node.inputs)}{attributes})"


def _attribute(value: bytes) -> object:
    return helper.get_attribute_value(onnx.AttributeProto.FromString(value))
