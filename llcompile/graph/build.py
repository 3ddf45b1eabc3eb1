"""From a canonical ONNX graph to blocks and templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from llcompile.dataflow.canonical import Canonical, canonicalize, weight_roles
from llcompile.dataflow.nodes import (
    EMBEDDING,
    LOGITS,
    Dataflow,
    Kind,
    Node,
    check_dataflow,
    read_dataflow,
    read_program,
)
from llcompile.dataflow.shapes import infer_specs
from llcompile.dataflow.templates import make_template
from llcompile.graph.cuts import find_cuts
from llcompile.graph.printer import print_dataflow
from llcompile.graph.simplify import VERIFIER, DropDeadNodes, MergePositionArithmetic
from llcompile.ir.check import check_graph
from llcompile.ir.errors import CompileError
from llcompile.ir.graph import Block, Graph, Template, TensorSpec
from llcompile.ir.model import Model
from llcompile.passes import Observer, Pass, run_alone, run_passes

PASSES = (DropDeadNodes(), MergePositionArithmetic())


def build_graph(model: Model, observe: Observer[Dataflow] | None = None) -> Graph:
    """Blocks, templates and the tensors between them. Raises CompileError G1xx for what is not canonical.

    `observe` sees the dataflow after each pass.
    """
    flow = simplified_dataflow(model, observe)
    specs = infer_specs(flow)
    graph = _assemble(flow, specs, *block_forms(flow, specs))
    violations = check_graph(graph)
    if violations:
        raise CompileError("G106", f"the graph of {model.name}: {'; '.join(violations[:5])}", 1)
    return graph


def simplified_dataflow(model: Model, observe: Observer[Dataflow] | None = None) -> Dataflow:
    """The model's dataflow without what is dead or repeated, its weights' uses checked."""
    flow = read_dataflow(model)
    violations = check_dataflow(flow)
    if violations:
        raise CompileError("G101", f"the graph of {model.name}: {'; '.join(violations[:5])}", 1)
    flow = run_passes(flow, PASSES, VERIFIER, observe)
    _check_roles(flow)
    return flow


def run_pass(step: Pass[Dataflow], data: bytes) -> tuple[str, str]:
    """The texts before and after `step` of a canonical ONNX program, whose inputs but two are its weights.

    Raises CompileError G101 and G102 for what is not canonical, E112 and E113 as run_alone does.
    """
    return run_alone(read_program(data), step, VERIFIER, print_dataflow)


def block_forms(
    flow: Dataflow, specs: Mapping[str, TensorSpec]
) -> tuple[tuple[Canonical, ...], tuple[str, ...]]:
    """The canonical form of every block, in execution order, and the outputs of the positions template."""
    pieces = list(find_cuts(flow, specs).pieces())
    tables = _tables(flow, pieces)
    forms = (
        canonicalize(flow, specs, piece, outputs, frozenset(tables))
        for piece, outputs in _with_outputs(pieces)
    )
    return tuple(forms), tables


def _check_roles(flow: Dataflow) -> None:
    """A matrix packed for Linear cannot be read as a plain vector; a tied table is stored twice."""
    weight_roles([node for node in flow.nodes if node.op != EMBEDDING], flow)


def _tables(flow: Dataflow, pieces: Sequence[Sequence[Node]]) -> tuple[str, ...]:
    """Position tensors that the activation nodes of more than one block read, in order of first use."""
    readers: dict[str, set[int]] = {}
    for number, piece in enumerate(pieces):
        for node in piece:
            for name in node.inputs:
                if flow.kinds.get(name) is Kind.POSITION:
                    readers.setdefault(name, set()).add(number)
    return tuple(name for name, blocks in readers.items() if len(blocks) > 1)


def _with_outputs(pieces: Sequence[Sequence[Node]]) -> list[tuple[Sequence[Node], tuple[str, ...]]]:
    """Each piece with the tensors that later pieces read, in the order they are made, or `logits`."""
    read_later = {LOGITS}
    result: list[tuple[Sequence[Node], tuple[str, ...]]] = []
    for piece in reversed(pieces):
        made = [name for node in piece for name in node.outputs]
        result.append((piece, tuple(name for name in made if name in read_later)))
        read_later.update(name for node in piece for name in node.inputs)
    return result[::-1]


def _assemble(
    flow: Dataflow, specs: Mapping[str, TensorSpec], forms: Sequence[Canonical], tables: tuple[str, ...]
) -> Graph:
    ids: dict[tuple[object, ...], str] = {}
    templates: dict[str, Template] = {}
    blocks: list[Block] = []
    for form in forms:
        id = ids.setdefault(form.key, f"t{len(ids)}")
        if id not in templates:
            templates[id] = make_template(id, form, flow, specs)
        blocks.append(Block(len(blocks), id, form.inputs, form.outputs, form.weights))
    blocks = _mark_last_row(blocks, templates)
    crossing = dict.fromkeys(name for block in blocks for name in (*block.inputs, *block.outputs))
    positions = None
    if tables:
        form = canonicalize(flow, specs, (), tables, frozenset())
        positions = make_template("positions", form, flow, specs, tables)
    return Graph(tuple(blocks), templates, {name: specs[name] for name in crossing}, positions)


def _mark_last_row(blocks: Sequence[Block], templates: Mapping[str, Template]) -> list[Block]:
    """Mark the blocks that neither hold a cache nor feed, at any distance, a block that does."""
    feeds_cache: set[str] = set()
    result: list[Block] = []
    for block in reversed(blocks):
        needs_all = bool(templates[block.template].caches) or not feeds_cache.isdisjoint(block.outputs)
        if needs_all:
            feeds_cache.update(block.inputs)
        result.append(replace(block, last_row_only=not needs_all))
    return result[::-1]
