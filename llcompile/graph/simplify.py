"""Passes over the dataflow: what nothing reads is dropped, and position arithmetic is done once.

Exporters repeat per layer what depends on positions alone (an Unsqueeze of the rotary table). Merged, such a
tensor has its true number of users, on which the positions template depends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx

from llcompile.dataflow.canonical import constant_key
from llcompile.dataflow.nodes import LOGITS, Dataflow, Kind, Node, check_dataflow
from llcompile.passes import Verifier

LIVE, MERGED = "live", "positions-merged"


@dataclass(frozen=True)
class DropDeadNodes:
    """Remove nodes on which `logits` does not depend, and weights and constants that no node reads.

    before: a = Add(x, c); b = Relu(x); logits = Mul(a, a)
    after:  a = Add(x, c); logits = Mul(a, a)
    """

    name: ClassVar[str] = "drop-dead-nodes"
    requires: ClassVar[frozenset[str]] = frozenset()
    ensures: ClassVar[frozenset[str]] = frozenset({LIVE})

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

    name: ClassVar[str] = "merge-position-arithmetic"
    requires: ClassVar[frozenset[str]] = frozenset({LIVE})
    ensures: ClassVar[frozenset[str]] = frozenset({MERGED})

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


def _live(flow: Dataflow) -> Iterator[str]:
    """`logits` depends on every node, and a node reads every weight."""
    read = {name for node in flow.nodes for name in node.inputs}
    for node in flow.nodes:
        if LOGITS not in node.outputs and read.isdisjoint(node.outputs):
            yield f"nothing reads {', '.join(node.outputs)} of {node.op}"
    yield from (f"nothing reads the weight {name}" for name in flow.weights if name not in read)


def _merged(flow: Dataflow) -> Iterator[str]:
    """No two nodes compute the same from positions and constants."""
    first: dict[tuple[object, ...], Node] = {}
    for node in flow.nodes:
        if node.outputs[0] != LOGITS and flow.kinds[node.outputs[0]] is not Kind.ACTIVATION:
            twin = first.setdefault(_key(node, flow), node)
            if twin is not node:
                yield f"{node.outputs[0]} is computed as {twin.outputs[0]} is"


PROPERTIES: Mapping[str, Callable[[Dataflow], Iterator[str]]] = {LIVE: _live, MERGED: _merged}
VERIFIER: Verifier[Dataflow] = Verifier(check_dataflow, PROPERTIES)
