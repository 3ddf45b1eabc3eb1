"""Where a block can be cut: its sums, each a product with a matrix whose input is made by other matrices.

The last products are cut by their input's features, those before them by their outputs, and a device's share of the
features between is by heads where attention makes them, else by columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from onnx import numpy_helper

from llcompile.dataflow.nodes import ATTENTION, LINEAR, Dataflow, Node
from llcompile.dataflow.shapes import infer_specs
from llcompile.dataflow.templates import template_flow
from llcompile.ir.graph import Template, TensorSpec
from llcompile.ir.shard import Piece
from llcompile.shard.operators import Known
from llcompile.shard.parts import CannotCut, Part
from llcompile.shard.share import Range, column_ranges, head_ranges

# A prime that is no other dimension: what equals it in a product of dimensions is the new tokens.
_NEW_TOKENS = (1 << 61) - 1


@dataclass(frozen=True)
class Product:
    """A product with a matrix that is cut by its input's features: `width` of them, of `heads` heads of which `group`
    read one key head, or of none."""

    node: Node
    width: int
    heads: int = 0
    group: int = 0

    def ranges(self, shares: Sequence[float], multiple: int) -> tuple[Range, ...]:
        """Each rank's heads, or columns where there are no heads; cut at multiples of `multiple` features."""
        if self.heads:
            return head_ranges(shares, self.heads, self.group, self.width // self.heads, multiple)
        return column_ranges(shares, self.width, multiple)

    def least(self) -> Range:
        """The smallest share: a head, or a column."""
        return 0, 1

    def part(self, share: Range) -> Part:
        """The features of the input that a share has."""
        features = self.width // self.heads if self.heads else 1
        return Part(2, ((share[0] * features, share[1] * features),))


@dataclass(frozen=True)
class Split:
    """A template that can be cut: the products whose parts are added up, the tensor that is their sum in the block, and
    the sum's other terms, in order. `pieces`: those that were made of it, by what they are."""

    template: Template
    flow: Dataflow
    specs: Mapping[str, TensorSpec]
    known: Known
    products: tuple[Product, ...]
    sum: str
    terms: tuple[str, ...]
    pieces: dict[object, Piece] = field(default_factory=dict, compare=False, repr=False)

    def piece(self, key: object, make: Callable[[], Piece]) -> Piece:
        """What `make` makes, made once for each `key`."""
        if key not in self.pieces:
            self.pieces[key] = make()
        return self.pieces[key]


def find(template: Template) -> Split:
    """Where `template` can be cut. Raises CannotCut."""
    flow = template_flow(template)
    specs = infer_specs(flow)
    shapes = {
        name: tuple(d if isinstance(d, int) else _NEW_TOKENS for d in spec.shape)
        for name, spec in specs.items()
    }
    constants = {name: numpy_helper.to_array(tensor) for name, tensor in flow.constants.items()}
    known = Known(shapes, constants)
    products = tuple(_product(node, flow, known) for node in _last_products(flow))
    if not products:
        raise CannotCut("no matrix multiplies what other matrices make")
    total, terms = _sum_of([product.node for product in products], flow, template)
    return Split(template, flow, specs, known, products, total, terms)


def _last_products(flow: Dataflow) -> list[Node]:
    """Linear nodes whose input depends on another's output, and on whose output no other depends."""
    made: set[str] = set()
    for node in flow.nodes:
        if node.op == LINEAR or not made.isdisjoint(node.inputs):
            made.update(node.outputs)
    read: set[str] = set()
    last: list[Node] = []
    for node in reversed(flow.nodes):
        if node.op == LINEAR and read.isdisjoint(node.outputs) and node.inputs[0] in made:
            last.append(node)
        if node.op == LINEAR or not read.isdisjoint(node.outputs):
            read.update(node.inputs)
    return last[::-1]


def _product(node: Node, flow: Dataflow, known: Known) -> Product:
    """`node` with the heads of the attention that makes its input, with no other matrix between."""
    width = known.shapes[node.inputs[0]][-1]
    if len(known.shapes[node.inputs[0]]) != 3:
        raise CannotCut("a product with a matrix has an input that is not (1, n, features)")
    attentions = _attentions(node.inputs[0], flow)
    if not attentions:
        return Product(node, width)
    shapes = {tuple(known.shapes[name][1] for name in a.inputs[:2]) for a in attentions}
    (heads, kv_heads), *others = shapes
    if others or width % heads:
        raise CannotCut("attentions of different heads make the input of one matrix")
    return Product(node, width, heads, heads // kv_heads)


def _attentions(tensor: str, flow: Dataflow) -> list[Node]:
    found: list[Node] = []
    waiting, seen = [tensor], {tensor}
    while waiting:
        node = flow.producers.get(waiting.pop())
        if node is None or node.op == LINEAR:
            continue
        if node.op == ATTENTION:
            found.append(node)
            continue
        waiting += [name for name in node.inputs if name not in seen]
        seen.update(node.inputs)
    return found


def _sum_of(nodes: Sequence[Node], flow: Dataflow, template: Template) -> tuple[str, tuple[str, ...]]:
    """The tensor of which the products are terms, added up by nothing but additions, and its other terms in order."""
    if len(nodes) == 1:
        return nodes[0].outputs[0], ()
    parts = {node.outputs[0] for node in nodes}
    readers: dict[str, list[Node]] = {}
    for node in flow.nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    outputs = {spec.name for spec in template.outputs}
    for node in flow.nodes:
        terms = _terms(node, flow, readers, outputs, parts) if node.op == "Add" else []
        if parts <= set(terms):
            return node.outputs[0], tuple(term for term in terms if term not in parts)
    raise CannotCut("its matrices' results are not added up before they are used otherwise")


def _terms(
    node: Node, flow: Dataflow, readers: Mapping[str, Sequence[Node]], outputs: set[str], parts: set[str]
) -> list[str]:
    """What `node` adds up: of a term that is itself a sum, and is read here alone, the terms."""
    terms: list[str] = []
    for name in node.inputs:
        inner = flow.producers.get(name)
        alone = len(readers[name]) == 1 and name not in outputs
        if alone and inner is not None and inner.op == "Add":
            terms += _terms(inner, flow, readers, outputs, parts)
        elif name not in parts or alone:
            terms.append(name)
    return terms
