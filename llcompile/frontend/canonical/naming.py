"""An order and names that depend on the graph alone, so that the same model always gives the same bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from llcompile.frontend.canonical import rewriting as rw


def _before(node: ir.Node, among: set[ir.Node], seen: set[ir.Node]) -> Iterator[ir.Node]:
    """Those `among` that `node` needs and that are not `seen` yet, itself last."""
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if producer in among and producer not in seen:
            yield from _before(producer, among, seen)
    if node in among and node not in seen:
        seen.add(node)
        yield node


def _ordered(model: ir.Model) -> list[ir.Node]:
    """Position nodes first, in the order in which the others come to need them; the others as they were."""
    positions, seen = rw.position_nodes(model), set[ir.Node]()
    others = [node for node in model.graph if node not in positions]
    first = [needed for node in others for needed in _before(node, positions, seen)]
    unread = [node for node in model.graph if node in positions and node not in seen]
    return first + unread + others


@dataclass(frozen=True)
class OrderAndName:
    """What positions alone decide comes first; values are named after their module and operator.

    before: mul_39 = Mul(position_ids, b); add_7 = Add(x, y); mul_64 = Mul(position_ids, a); z = Sub(add_7, mul_64)
    after:  rotary.mul = Mul(position_ids, a); layers.0.add = Add(x, y); z = Sub(layers.0.add, rotary.mul)

    Needed because a model's own code may go through a set (Gemma 3 over its layer types), so that the exporter's
    order and numbers differ from run to run. Inputs and outputs keep their names.
    """

    name: ClassVar[str] = "order-and-name"
    requires: ClassVar[frozenset[str]] = frozenset({"constants-are-initializers"})
    ensures: ClassVar[frozenset[str]] = frozenset({"deterministic"})

    def run(self, value: ir.Model) -> ir.Model:
        graph, order = value.graph, _ordered(value)
        graph.remove(order)
        graph.extend(order)
        self._name_values(order)
        self._name_constants(value, order)
        return value

    @staticmethod
    def _name_values(order: list[ir.Node]) -> None:
        taken: Counter[str] = Counter()
        for node in order:
            for value in node.outputs:
                if value.is_graph_output():
                    continue
                name = ".".join(filter(None, (rw.scope(node), node.op_type.lower())))
                taken[name] += 1
                value.name = name if taken[name] == 1 else f"{name}_{taken[name] - 1}"
            node.name = node.outputs[0].name

    @staticmethod
    def _name_constants(model: ir.Model, order: list[ir.Node]) -> None:
        """Buffers and shapes have names that say something; other constants are numbered as they are read."""
        initializers = model.graph.initializers
        read = dict.fromkeys(v for node in order for v in node.inputs if v is not None and v.is_initializer())
        count = 0
        for value in read:
            if rw.KIND in value.metadata_props:
                value.name = str(value.name).removeprefix("model.")
            elif not str(value.name).startswith("shape_"):
                value.name, count = f"constant_{count}", count + 1
        for name in sorted(initializers):
            initializers[name] = initializers.pop(name)
