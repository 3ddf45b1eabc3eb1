"""A walk from a block's products back to its inputs: what one device needs of every tensor, and what is left then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from onnx import numpy_helper

from llcompile.dataflow.nodes import ATTENTION, LINEAR, Dataflow, Node
from llcompile.ir.shard import WeightCut
from llcompile.shard.find import Split
from llcompile.shard.operators import Array, Needs, constants_of, needs, slopes_of
from llcompile.shard.parts import CannotCut, Part, union
from llcompile.shard.share import Range


@dataclass(frozen=True)
class Narrowed:
    """What is left of a block on one device. `cuts`: what each of the flow's weights is. `is_placed`: whether it is not
    that of any share of the same size. `pads`: of each product, zeros before and behind its features."""

    flow: Dataflow
    cuts: Mapping[str, WeightCut]
    is_placed: bool
    pads: tuple[Range, ...]


def narrow(split: Split, shares: Sequence[Range], multiple: int) -> Narrowed:
    """The block without all that the sum does not need, with the features that each product has by `shares`.

    A product's matrix is cut at multiples of `multiple` features: where that is more than the share, what it multiplies
    has zeros there. The products' biases are no part of it: they are added to the sum, once. Raises CannotCut.
    """
    uses: dict[tuple[str, ...], Needs] = {}
    pads: dict[tuple[str, ...], Range] = {}
    for product, share in zip(split.products, shares, strict=True):
        part = product.part(share)
        ((start, stop),) = part.ranges
        first, last = start // multiple * multiple, min(product.width, -(-stop // multiple) * multiple)
        uses[product.node.outputs] = part, Part(1, ((first, last),))
        pads[product.node.outputs] = start - first, last - stop
    made = _walk(split, uses)
    rest = _Rest(split, made)
    nodes: list[Node] = []
    for node in (node for node in split.flow.nodes if node.outputs in uses):
        left = rest.narrowed(node, uses[node.outputs])
        nodes += rest.padded(left, uses, *pads[node.outputs]) if any(pads.get(node.outputs, ())) else [left]
    whole = split.flow
    flow = Dataflow(
        tuple(nodes), {**whole.constants, **rest.constants}, rest.weights, whole.header, whole.given
    )
    return Narrowed(flow, rest.cuts, rest.is_placed, tuple(pads.values()))


def _walk(split: Split, uses: dict[tuple[str, ...], Needs]) -> dict[str, Part | None]:
    """Fill `uses` with what each node that is needed needs of its inputs, by its outputs. Returns what is needed of
    each tensor that a node makes."""
    wanted: dict[str, list[tuple[str, Part | None]]] = {}
    made: dict[str, Part | None] = {}
    for node in reversed(split.flow.nodes):
        if node.outputs not in uses:
            if wanted.keys().isdisjoint(node.outputs):
                continue
            for name in node.outputs:
                made[name] = _resolved(name, wanted.get(name, []))
            uses[node.outputs] = needs(node, [made[name] for name in node.outputs], split.known)
        for name, part in zip(node.inputs, uses[node.outputs], strict=False):
            wanted.setdefault(name, []).append((node.op, part))
    given = split.flow.given.keys() & wanted.keys()
    if any(part is not None for name in given for _, part in wanted[name]):
        raise CannotCut("a part of the block's input goes to one device alone")
    return made


def _resolved(name: str, wanted: Sequence[tuple[str, Part | None]]) -> Part | None:
    """What is needed of a tensor by all its readers: one part, or what those that take parts of it take together."""
    parts = {part for _, part in wanted}
    if len(parts) == 1:
        return parts.pop()
    some = [part for part in parts if part is not None]
    if len(some) < len(parts) or len({part.axis for part in some}) > 1:
        raise CannotCut(f"{name} is needed in different ways")
    whole = union(some)
    if any(part != whole and op != "Slice" for op, part in wanted):
        raise CannotCut(f"{name} is needed in different parts")
    return whole


@dataclass
class _Rest:
    """What is left, node by node, and the constants and weights that it reads."""

    split: Split
    made: Mapping[str, Part | None]
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    weights: dict[str, tuple[int, ...]] = field(default_factory=dict)
    cuts: dict[str, WeightCut] = field(default_factory=dict)
    is_placed: bool = False

    def narrowed(self, node: Node, parts: Needs) -> Node:
        """`node` on what it needs, `parts`; of a product without its bias."""
        known, outputs = self.split.known, [self.made.get(name) for name in node.outputs]
        inputs = [self.made.get(name, part) for name, part in zip(node.inputs, parts, strict=False)]
        changed = constants_of(node, outputs, inputs, known)
        names = [
            self._constant(name, changed[i]) if i in changed else self._leaf(name, part)
            for i, (name, part) in enumerate(zip(node.inputs, parts, strict=False))
        ]
        result = replace(node, inputs=tuple(names))
        if node.op == ATTENTION and outputs[0] is not None:
            result = slopes_of(result, outputs[0].ranges)
            self.is_placed |= result.attributes != node.attributes
        return result

    def padded(
        self, node: Node, uses: Mapping[tuple[str, ...], Needs], before: int, behind: int
    ) -> Iterator[Node]:
        """`node`, a product, and before it what puts zeros around its input: of features that every device has."""
        others = [each for each in self.split.flow.nodes if each.op == LINEAR and each.outputs in uses]
        source = others[0].inputs[0]
        if self.split.known.shapes[source][-1] < max(before, behind):
            raise CannotCut(f"{source} has fewer features than the {max(before, behind)} that are filled up")
        parts = [node.inputs[0]]
        for size, place in ((before, 0), (behind, len(parts) + 1)):
            if size:
                edges = [self._constant("edge", np.array([edge], np.int64)) for edge in (0, size, 2)]
                some, zeros = f"{node.outputs[0]} some {place}", f"{node.outputs[0]} zeros {place}"
                yield Node("Slice", (source, *edges), (some,))
                yield Node("Mul", (some, self._constant("nothing", np.array(0, np.float32))), (zeros,))
                parts.insert(place, zeros)
        wide, axis = f"{node.outputs[0]} input", onnx.helper.make_attribute("axis", 2)
        attributes = (("axis", axis.SerializeToString(deterministic=True)),)
        yield Node("Concat", tuple(parts), (wide,), attributes)
        yield replace(node, inputs=(wide, *node.inputs[1:]))

    def _leaf(self, name: str, part: Part | None) -> str:
        """The name of what is read of `name` where `part` is needed of it."""
        flow = self.split.flow
        if name in flow.weights:
            return self._weight(name, part)
        if name in flow.constants and part is not None:
            self.is_placed = True
            return self._constant(name, _taken(self.split.known.constants[name], part))
        return name

    def _weight(self, name: str, part: Part | None) -> str:
        number = list(self.split.flow.weights).index(name)
        shape = list(self.split.flow.weights[name])
        if part is None or part.size == shape[part.axis]:
            own, cut = name, WeightCut(number)
        else:
            own, cut = f"{name} {part}", WeightCut(number, part.axis, part.ranges)
            shape[part.axis] = part.size
        self.weights[own], self.cuts[own] = tuple(shape), cut
        return own

    def _constant(self, name: str, value: Array) -> str:
        own = f"{name} {value.tolist()}"
        self.constants[own] = numpy_helper.from_array(value, own)
        return own


def _taken(value: Array, part: Part) -> Array:
    index = [i for start, stop in part.ranges for i in range(start, stop)]
    return value.take(index, axis=part.axis)
