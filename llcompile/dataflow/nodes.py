"""The canonical ONNX graph as nodes and tensors, and what each tensor depends on.

Tensors fall into three kinds by their ancestors alone, never by their names: fixed (constants and weights
only), position (`position_ids` and constants), activation (all others: they depend on `input_ids`, or on a
weight and the positions, as a learned position table's row does). Only activations are live at a cut and
travel; the others are computed where they are needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property

import onnx

from llcompile.ir.errors import CompileError
from llcompile.ir.graph import TensorSpec
from llcompile.ir.model import Model

INPUT_IDS, POSITION_IDS, LOGITS = "input_ids", "position_ids", "logits"
ATTENTION, LINEAR, EMBEDDING = "llcompile.Attention", "llcompile.Linear", "llcompile.Embedding"


class Kind(Enum):
    """What a tensor depends on; see the module's docstring."""

    FIXED = "fixed"
    POSITION = "position"
    ACTIVATION = "activation"


@dataclass(frozen=True)
class Node:
    """An operator. `op`: its type, after its domain and a dot outside ONNX's own. `attributes`: name and
    serialized value, sorted; an absent optional input is ""."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[tuple[str, bytes], ...] = ()

    def attribute(self, name: str, default: int | float = 0) -> int | float:
        """The value of a numeric attribute."""
        for key, value in self.attributes:
            if key == name:
                number: int | float = onnx.helper.get_attribute_value(onnx.AttributeProto.FromString(value))
                return number
        return default

    def numbers(self, name: str) -> list[int] | list[float]:
        """The value of an attribute that is a list of numbers; an empty one where it is absent."""
        values = dict(self.attributes)
        if name not in values:
            return []
        return list(onnx.helper.get_attribute_value(onnx.AttributeProto.FromString(values[name])))

    def with_numbers(self, name: str, numbers: Sequence[int] | Sequence[float]) -> Node:
        """The same operator with another list of numbers as attribute `name`."""
        value = onnx.helper.make_attribute(name, numbers).SerializeToString(deterministic=True)
        return replace(
            self, attributes=tuple(sorted([*(a for a in self.attributes if a[0] != name), (name, value)]))
        )

    def to_proto(self) -> onnx.NodeProto:
        domain, _, kind = self.op.rpartition(".")
        proto = onnx.NodeProto(op_type=kind, domain=domain, input=self.inputs, output=self.outputs)
        proto.attribute.extend(onnx.AttributeProto.FromString(value) for _, value in self.attributes)
        return proto


@dataclass(frozen=True)
class Dataflow:
    """Nodes in an order in which they can run, and the tensors they start from.

    `weights` maps each weight input to its shape; `constants` each constant to its value. `header` is the
    source model without its graph: versions and model-local functions. `given`: activations that are made elsewhere,
    none in a whole model.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, onnx.TensorProto]
    weights: Mapping[str, tuple[int, ...]]
    header: onnx.ModelProto
    given: Mapping[str, TensorSpec] = field(default_factory=dict)

    @cached_property
    def producers(self) -> Mapping[str, Node]:
        return {name: node for node in self.nodes for name in node.outputs if name}

    @cached_property
    def kinds(self) -> Mapping[str, Kind]:
        """The kind of every tensor but the two inputs."""
        return _kinds(self)

    def is_activation(self, tensor: str) -> bool:
        return self.kinds.get(tensor) is Kind.ACTIVATION


_IDS, _POSITION, _WEIGHT = 1, 2, 4


def _kinds(flow: Dataflow) -> dict[str, Kind]:
    masks = {INPUT_IDS: _IDS, POSITION_IDS: _POSITION, "": 0}
    masks.update(dict.fromkeys(flow.given, _IDS))
    masks.update(dict.fromkeys(flow.constants, 0))
    masks.update(dict.fromkeys(flow.weights, _WEIGHT))
    for node in flow.nodes:
        mask = 0
        for name in node.inputs:
            mask |= masks[name]
        masks.update((name, mask) for name in node.outputs if name)
    return {name: _kind(mask) for name, mask in masks.items() if name not in ("", INPUT_IDS, POSITION_IDS)}


def _kind(mask: int) -> Kind:
    if mask == _POSITION:
        return Kind.POSITION
    return Kind.ACTIVATION if mask & (_IDS | _POSITION) else Kind.FIXED


def read_dataflow(model: Model) -> Dataflow:
    """Parse `model.onnx`. Raises CompileError G101 (no usable graph) or G102 (an operator we cannot place)."""
    flow = read_program(model.onnx)
    for name, shape in flow.weights.items():
        source = model.weights.get(name)
        if source is None:
            raise CompileError("G101", f"graph input {name} is no weight of {model.name}", 1)
        if shape != tuple(source.shape):
            raise CompileError(
                "G101", f"weight {name}: graph has shape {shape}, checkpoint {source.shape}", 1
            )
    return flow


def read_program(data: bytes) -> Dataflow:
    """Parse a serialized ModelProto, whose inputs but two are weights. Raises CompileError G102."""
    proto = onnx.ModelProto.FromString(data)
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    nodes = []
    for node in proto.graph.node:
        if node.op_type == "Constant" and not node.domain:
            constants[node.output[0]] = _constant(node)
        else:
            nodes.append(_node(node))
    weights = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in proto.graph.input
        if _is_weight(value, constants)
    }
    header = onnx.ModelProto(ir_version=proto.ir_version)
    header.opset_import.extend(proto.opset_import)
    header.functions.extend(proto.functions)
    return Dataflow(tuple(nodes), constants, weights, header)


def _is_weight(value: onnx.ValueInfoProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    return value.name not in (INPUT_IDS, POSITION_IDS) and value.name not in constants


def _constant(node: onnx.NodeProto) -> onnx.TensorProto:
    attribute = node.attribute[0]
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        tensor = onnx.TensorProto()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
        return tensor
    types = {"value_float": onnx.TensorProto.FLOAT, "value_floats": onnx.TensorProto.FLOAT}
    kind = types.get(attribute.name, onnx.TensorProto.INT64)
    if attribute.name not in (*types, "value_int", "value_ints"):
        raise CompileError("G102", f"constant {node.output[0]} has {attribute.name}, expected numbers", 1)
    shape = [len(value)] if attribute.name.endswith("s") else []
    return onnx.helper.make_tensor(node.output[0], kind, shape, value if shape else [value])


def _node(proto: onnx.NodeProto) -> Node:
    op = f"{proto.domain}.{proto.op_type}" if proto.domain else proto.op_type
    attributes = []
    for attribute in sorted(proto.attribute, key=lambda a: a.name):
        if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
            name = proto.name or proto.output[0]
            raise CompileError("G102", f"operator {op} at {name} holds a graph (control flow); unroll it", 1)
        copy = onnx.AttributeProto()
        copy.CopyFrom(attribute)
        copy.doc_string = ""
        attributes.append((attribute.name, copy.SerializeToString(deterministic=True)))
    return Node(op, tuple(proto.input), tuple(proto.output), tuple(attributes))


def check_dataflow(flow: Dataflow) -> list[str]:
    """Every violation: tensors read before they are made or made twice, no logits."""
    known = {"", INPUT_IDS, POSITION_IDS, *flow.constants, *flow.weights}
    violations = []
    for node in flow.nodes:
        operator = f"{node.op} -> {node.outputs[0]}"
        violations += [
            f"{operator} reads {name}, which nothing made before" for name in node.inputs if name not in known
        ]
        violations += [f"{operator} makes {name} again" for name in node.outputs if name and name in known]
        known.update(node.outputs)
    if LOGITS not in known:
        violations.append(f"nothing makes {LOGITS}")
    return violations
