"""A template as steps that numpy can run: what of it is needed, and for how long."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx

from llcompile.ir.graph import Template
from llcompile.quantize.operators import Array, Operator, operator_of


@dataclass(frozen=True)
class Step:
    """A node to run. `name`: of its operator. `function` None: it is llcompile.Linear or llcompile.Embedding, whose
    matrix is not in memory. `computed` False: of a Linear only the input is of interest. `spent`: tensors that no
    later step reads."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    function: Operator | None
    computed: bool
    spent: frozenset[str]


@dataclass(frozen=True)
class Program:
    """`steps` in order; `constants`: the template's own tensors; `reads`: what they need that none of them makes."""

    steps: tuple[Step, ...]
    constants: Mapping[str, Array]
    reads: frozenset[str]


def program(template: Template, outputs: Collection[str]) -> Program:
    """What must run for `outputs` of the template, and for the inputs of its products with weight matrices."""
    model = onnx.load_model_from_string(template.onnx)
    needed, kept = set(outputs), []
    for node in reversed(model.graph.node):
        computed = not needed.isdisjoint(node.output)
        if computed or node.op_type == "Linear":
            read = [name for name in (node.input if computed else node.input[:1]) if name]
            spent = frozenset(read) - needed
            needed |= set(read)
            unread = frozenset(node.output) - needed
            kept.append(_step(node, model, computed, spent | unread))
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    made = {name for step in kept for name in step.outputs}
    return Program(tuple(reversed(kept)), constants, frozenset(needed) - made)


def _step(node: onnx.NodeProto, model: onnx.ModelProto, computed: bool, spent: frozenset[str]) -> Step:
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    function = None if node.op_type in ("Linear", "Embedding") else operator_of(node, opsets)
    return Step(node.op_type, tuple(node.input), tuple(node.output), function, computed, spent)
