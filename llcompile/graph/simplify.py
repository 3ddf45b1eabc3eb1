"""Passes over the dataflow: what nothing reads is dropped, and position arithmetic is done once.

Exporters repeat per layer what depends on positions alone (an Unsqueeze of the rotary table). Merged, such a
tensor has its true number of users, on which the positions template depends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx
from onnx import numpy_helper

from llcompile.graph.dataflow import LOGITS, Dataflow, Kind, Node

LIVE, MERGED = "live", "positions-merged"


@dataclass(frozen=True)
class DropDeadNodes:
    """Remove nodes on which `logits` does not depend, and weights and constants that no node reads.

    before: a = Add(x, c); b = Relu(x); logits = Mul(a, a)
    after:  a = Add(x, c); logits = Mul(a, a)
    """

    name: str = "drop-dead-nodes"
    requires: frozenset[str] = frozenset()
    ensures: frozenset[str] = frozenset({LIVE})

    def run(self, value: Dataflow) -> Dataflow:
        needed = {LOGITS}
        kept: list[Node] = []
        for node in reversed(value.nodes):
            if needed.intersection(node.outputs):
                needed.update(node.inputs)
                kept.append(node)
        return replace(
            value,
            nodes=tuple(reversed(kept)),
            constants={name: tensor for name, tensor in value.constants.items() if name in needed},
            weights={name: shape for name, shape in value.weights.items() if name in needed},
        )


@dataclass(frozen=True)
class MergePositionArithmetic:
    """Merge equal nodes among those that depend on positions and constants alone; constants count by value.

    before: c = Cos(position_ids); a = Unsqueeze(c, [1]); b = Unsqueeze(c, [1]); y = Mul(x, a); z = Mul(y, b)
    after:  c = Cos(position_ids); a = Unsqueeze(c, [1]); y = Mul(x, a); z = Mul(y, a)
    """

    name: str = "merge-position-arithmetic"
    requires: frozenset[str] = frozenset({LIVE})
    ensures: frozenset[str] = frozenset({MERGED})

    def run(self, value: Dataflow) -> Dataflow:
        renamed: dict[str, str] = {}
        first: dict[tuple[object, ...], Node] = {}
        kept: list[Node] = []
        for node in value.nodes:
            node = replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs))
            if node.outputs[0] != LOGITS and value.kinds[node.outputs[0]] is not Kind.ACTIVATION:
                twin = first.setdefault(_key(node, value), node)
                if twin is not node:
                    renamed.update(zip(node.outputs, twin.outputs, strict=True))
                    continue
            kept.append(node)
        return replace(value, nodes=tuple(kept))


def _key(node: Node, flow: Dataflow) -> tuple[object, ...]:
    return (
        node.op,
        node.attributes,
        len(node.outputs),
        *(_value(name, flow.constants) for name in node.inputs),
    )


def _value(name: str, constants: Mapping[str, onnx.TensorProto]) -> object:
    tensor = constants.get(name)
    return name if tensor is None else constant_key(tensor)


def constant_key(tensor: onnx.TensorProto) -> tuple[str, tuple[int, ...], bytes]:
    """A constant's dtype, shape and value, whatever its name and encoding."""
    array = numpy_helper.to_array(tensor)
    return array.dtype.name, array.shape, array.tobytes()
