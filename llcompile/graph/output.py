"""The output head in pieces: where its matrix is larger than any layer's block, several blocks that share its rows.

A token of the vocabulary is a row of the matrix, and its logit follows from that row alone. So the last block can be
cut into blocks of a part of the rows each, as large as the largest block before, whose logits have the same bits.

    before: 45: h = RMSNormalization(x, norm); l = Linear(h, w); logits = Mul(l, scale)
    after:  45: h = RMSNormalization(x, norm); logits.0 = Linear(h, w[0:64])
            46: logits.1 = Linear(h, w[64:128])
            47: l = Concat(logits.0, logits.1, Linear(h, w[128:160])); logits = Mul(l, scale)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import onnx

from llcompile.dataflow.canonical import Canonical, canonicalize
from llcompile.dataflow.nodes import LINEAR, LOGITS, Dataflow, Node
from llcompile.dataflow.shapes import infer_specs
from llcompile.dataflow.templates import make_template, template_flow
from llcompile.ir.check import check_graph
from llcompile.ir.errors import INTERNAL, CompileError
from llcompile.ir.graph import Block, Graph, Template
from llcompile.ir.model import Model, WeightSource

UNIT = 64  # rows: whole tiles of any processor's kernels
HIDDEN = f"{LOGITS}.hidden"  # what the matrix multiplies


@dataclass(frozen=True)
class _Head:
    """The last block's nodes `before` its product with the matrix, `linear`, and those `after`, which read nothing else
    that depends on tokens; `outputs`: of the block."""

    flow: Dataflow
    before: tuple[Node, ...]
    linear: Node
    after: tuple[Node, ...]
    outputs: tuple[str, ...]

    @property
    def hidden(self) -> str:
        """What the matrix multiplies."""
        return self.linear.inputs[0]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.flow.weights[self.linear.inputs[1]]

    @property
    def by_row(self) -> tuple[str, ...]:
        """Weights of which each piece has its rows: the matrix, and its bias."""
        return tuple(name for name in self.linear.inputs[1:] if name)

    def piece(self, parts: Sequence[tuple[int, int]], number: int) -> tuple[Dataflow, tuple[str, ...]]:
        """The nodes of a piece, and what it makes: the first all before the product too, the last all behind it."""
        logits, last = [f"{LOGITS}.{each}" for each in range(len(parts))], len(parts) - 1
        fixed = [node for node in self.before if not any(map(self.flow.is_activation, node.outputs))]
        nodes = [replace(self.linear, outputs=(logits[number],))]
        if number == 0:
            made = (self.hidden,) if self.hidden not in self.flow.given else ()
            return self._flow([*self.before, *nodes], parts, number), (*made, logits[0])
        if number < last:
            return self._flow([*fixed, *nodes], parts, number), (logits[number],)
        axis = onnx.helper.make_attribute("axis", -1).SerializeToString(deterministic=True)
        joined = Node("Concat", tuple(logits), self.linear.outputs, (("axis", axis),))
        return self._flow([*fixed, *nodes, joined, *self.after], parts, number), self.outputs

    def _flow(self, nodes: Sequence[Node], parts: Sequence[tuple[int, int]], number: int) -> Dataflow:
        """`nodes`, with what they read: rows of weights, and tensors that other pieces make."""
        specs = infer_specs(self.flow)
        read = {name for node in nodes for name in node.inputs}.difference(*(node.outputs for node in nodes))
        rows = {name: parts[number][1] - parts[number][0] for name in self.by_row}
        weights = {
            name: (rows.get(name, shape[0]), *shape[1:])
            for name, shape in self.flow.weights.items()
            if name in read
        }
        sums = specs[self.linear.outputs[0]]
        known = {**self.flow.given, self.hidden: specs[self.hidden]}
        for each, (start, stop) in enumerate(parts):
            name = f"{LOGITS}.{each}"
            known[name] = replace(sums, name=name, shape=(*sums.shape[:-1], stop - start))
        given = {name: spec for name, spec in known.items() if name in read}
        return replace(self.flow, nodes=tuple(nodes), weights=weights, given=given)


def output_in_pieces(model: Model, graph: Graph, least: int = 1) -> tuple[Model, Graph]:
    """The graph with as many blocks for the output head, `least` or more, as make none larger than the largest block of
    a layer, and the model with the parts of the matrix that they have; both as they are where that is one block, or
    where the last block does more than to multiply by one matrix and to go on with that.

    Raises CompileError G106 (exit 1), an internal one, where that is no graph.
    """
    head = _found(graph)
    if head is None:
        return model, graph
    parts = _parts(head.shape, min(_largest(graph), -(-prod(head.shape) // least)))
    if len(parts) < 2:
        return model, graph
    cut = _assembled(graph, head, parts)
    violations = check_graph(cut)
    if violations:
        raise CompileError("G106", f"the output head in pieces: {'; '.join(violations[:5])}", INTERNAL)
    return replace(model, weights={**model.weights, **_sources(model, graph, head, parts)}), cut


def _found(graph: Graph) -> _Head | None:
    block = graph.blocks[-1]
    template = graph.templates[block.template]
    flow = template_flow(template)
    linears = [node for node in flow.nodes if node.op == LINEAR]
    if not linears or template.caches or graph.output_blocks > 1:
        return None
    linear, made = linears[-1], {*linears[-1].outputs}
    before, after = list[Node](), list[Node]()
    for node in flow.nodes:
        if not made.isdisjoint(node.inputs):
            if any(flow.is_activation(name) and name not in made for name in node.inputs):
                return None
            made.update(node.outputs)
            after.append(node)
        elif node is not linear:
            before.append(node)
    head = _Head(flow, tuple(before), linear, tuple(after), tuple(spec.name for spec in template.outputs))
    shared = any(name in node.inputs for node in (*before, *after) for name in head.by_row)
    cut_by_row = all(name in flow.weights for name in head.by_row)
    return head if cut_by_row and not shared and made.issuperset(head.outputs) else None


def _largest(graph: Graph) -> int:
    """Elements of the matrices of the largest block between the model's ends; 0 without any."""
    return max((_elements(graph.templates[block.template]) for block in graph.blocks[1:-1]), default=0)


def _elements(template: Template) -> int:
    return sum(prod(weight.shape) for weight in template.weights if weight.role == "linear")


def _parts(shape: tuple[int, ...], most: int) -> list[tuple[int, int]]:
    """Ranges of rows, in equal numbers of units but for the last one, of `most` elements each, or a unit."""
    rows, columns = shape
    if not most or rows * columns <= most:
        return [(0, rows)]
    count = -(-rows * columns // most)
    step = max(1, -(-rows // (count * UNIT))) * UNIT
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def _sources(
    model: Model, graph: Graph, head: _Head, parts: Sequence[tuple[int, int]]
) -> dict[str, WeightSource]:
    block = graph.blocks[-1]
    names = dict(zip((w.name for w in graph.templates[block.template].weights), block.weights, strict=True))
    return {
        _part_name(names[weight], part): model.weights[names[weight]].part(*part)
        for weight in head.by_row
        for part in parts
    }


def _part_name(weight: str, part: tuple[int, int]) -> str:
    return f"{weight}[{part[0]}:{part[1]}]"


def _assembled(graph: Graph, head: _Head, parts: Sequence[tuple[int, int]]) -> Graph:
    whole = graph.blocks[-1]
    names = {head.hidden: HIDDEN, **_graph_names(whole, graph.templates[whole.template])}
    used = {block.template for block in graph.blocks[:-1]}
    templates = {id: each for id, each in graph.templates.items() if id in used}
    ids: dict[tuple[object, ...], str] = {}
    blocks, tensors = list(graph.blocks[:-1]), dict(graph.tensors)
    for number, part in enumerate(parts):
        flow, outputs = head.piece(parts, number)
        specs = infer_specs(flow)
        form = canonicalize(flow, specs, flow.nodes, outputs, frozenset())
        id = ids.setdefault(form.key, f"t{len(templates)}")
        if id not in templates:
            formats = {weight.name: weight.format for weight in graph.templates[whole.template].weights}
            made = make_template(id, form, flow, specs)
            templates[id] = made.with_formats(formats[name] for name in form.weights)
        blocks.append(_block(whole, len(blocks), id, form, names, head.by_row, part))
        for own, name in zip(outputs, blocks[-1].outputs, strict=True):
            tensors[name] = replace(specs[own], name=name)
    return replace(
        graph, blocks=tuple(blocks), templates=templates, tensors=tensors, output_blocks=len(parts)
    )


def _graph_names(block: Block, template: Template) -> dict[str, str]:
    """What the template's tensors are called in the graph."""
    specs = (*template.inputs, *template.outputs)
    tensors = zip((spec.name for spec in specs), (*block.inputs, *block.outputs), strict=True)
    weights = zip((weight.name for weight in template.weights), block.weights, strict=True)
    return dict([*tensors, *weights])


def _block(
    whole: Block,
    id: int,
    template: str,
    form: Canonical,
    names: Mapping[str, str],
    by_row: Sequence[str],
    part: tuple[int, int],
) -> Block:
    weights = (_part_name(names[name], part) if name in by_row else names[name] for name in form.weights)
    inputs, outputs = (
        tuple(names.get(name, name) for name in group) for group in (form.inputs, form.outputs)
    )
    return Block(id, template, inputs, outputs, tuple(weights), whole.last_row_only)
