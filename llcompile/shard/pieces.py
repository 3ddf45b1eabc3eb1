"""The pieces of a block that can be cut, shards and tails, each a template of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx

from llcompile.dataflow.canonical import canonicalize
from llcompile.dataflow.nodes import ATTENTION, EMBEDDING, LINEAR, Dataflow, Node
from llcompile.dataflow.shapes import infer_specs
from llcompile.dataflow.templates import make_template
from llcompile.ir.graph import Template, TensorSpec
from llcompile.ir.shard import Piece, WeightCut
from llcompile.shard.find import Split
from llcompile.shard.narrow import narrow
from llcompile.shard.parts import CannotCut
from llcompile.shard.share import Range

_OPERATORS = 23  # ONNX's set of which sums are made


def shard_of(split: Split, shares: Sequence[Range], multiple: int) -> Piece:
    """What a device makes with a share of each of the block's products: the sum of its products, one tensor."""
    narrowed = narrow(split, shares, multiple)
    total, sums = _chain([product.node.outputs[0] for product in split.products], "partial")
    flow = replace(narrowed.flow, nodes=(*narrowed.flow.nodes, *sums))
    sizes = "x".join(str(stop - start) for start, stop in shares)
    place = "_at" + "x".join(str(start) for start, _ in shares) if narrowed.is_placed else ""
    pads = "_pad" + "x".join(f"{a}x{b}" for a, b in narrowed.pads) if any(map(any, narrowed.pads)) else ""
    return _piece(f"{split.template.id}_s{sizes}{place}{pads}", split, flow, (total,), (), narrowed.cuts)


def tail_of(split: Split, count: int) -> Piece:
    """What all devices make of `count` parts of the sum, in the order of their ranks, and of the block's inputs.

    Raises CannotCut where that needs more than the sum of what a shard makes.
    """
    parts = [f"part.{number}" for number in range(count)]
    biases = [p.node.inputs[2] for p in split.products if len(p.node.inputs) > 2 and p.node.inputs[2]]
    total, sums = _chain([*parts, *biases, *split.terms], split.sum)
    if total != split.sum:
        sums = [Node("Identity", (total,), (split.sum,))]
    before, after = _around(split)
    spec = split.specs[split.sum]
    given = {**split.flow.given, **{name: replace(spec, name=name) for name in parts}}
    flow = replace(split.flow, nodes=(*before, *sums, *after), given=given)
    outputs = tuple(spec.name for spec in split.template.outputs)
    cuts = {name: WeightCut(number) for number, name in enumerate(flow.weights)}
    piece = _piece(f"{split.template.id}_tail{count}", split, flow, outputs, parts, cuts)
    costly = {ATTENTION, EMBEDDING, LINEAR}.intersection(piece.template.ops)
    if costly:
        raise CannotCut(f"what follows the sum needs {', '.join(sorted(costly))}")
    return piece


def sum_template(spec: TensorSpec, count: int) -> Template:
    """`sum_N`, which adds N tensors like `spec` in the order of its arguments."""
    parts = [f"part.{number}" for number in range(count)]
    total, nodes = _chain(parts, "sum")
    header = onnx.ModelProto(ir_version=10)
    header.opset_import.add(domain="", version=_OPERATORS)
    given = {name: replace(spec, name=name) for name in parts}
    flow = Dataflow(tuple(nodes), {}, {}, header, given)
    specs = infer_specs(flow)
    form = canonicalize(flow, specs, flow.nodes, (total,), frozenset())
    return make_template(f"sum_{count}", form, flow, specs)


def _around(split: Split) -> tuple[list[Node], list[Node]]:
    """The block's nodes that need no product's result, and those that need the sum."""
    results, later = {product.node.outputs[0] for product in split.products}, {split.sum}
    before, after = list[Node](), list[Node]()
    for node in split.flow.nodes:
        if split.sum in node.outputs or not results.isdisjoint(node.outputs):
            continue
        if not later.isdisjoint(node.inputs):
            later.update(node.outputs)
            after.append(node)
        elif not results.isdisjoint(node.inputs):
            results.update(node.outputs)
        else:
            before.append(node)
    return before, after


def _chain(names: Sequence[str], total: str) -> tuple[str, list[Node]]:
    """Additions from left to right, the last of which makes `total`; of one tensor that tensor itself."""
    result, nodes = names[0], list[Node]()
    for number, name in enumerate(names[1:], 2):
        made = total if number == len(names) else f"{total}.{number}"
        nodes.append(Node("Add", (result, name), (made,)))
        result = made
    return result, nodes


def _piece(
    id: str,
    split: Split,
    flow: Dataflow,
    outputs: tuple[str, ...],
    parts: Sequence[str],
    cuts: Mapping[str, WeightCut],
) -> Piece:
    specs = infer_specs(flow)
    form = canonicalize(flow, specs, flow.nodes, outputs, frozenset())
    others = tuple(name for name in form.activations if name not in parts)
    form = replace(form, activations=(*parts, *others))
    numbers = {spec.name: number for number, spec in enumerate(split.template.inputs)}
    own = tuple(cuts[name] for name in form.weights)
    formats = (split.template.weights[cut.weight].format for cut in own)
    return Piece(
        template=make_template(id, form, flow, specs).with_formats(formats),
        inputs=tuple(numbers[name] for name in form.inputs if name in numbers),
        cuts=own,
    )
