"""Blocks written by hand as templates, and random values for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from llcompile.dataflow.canonical import canonicalize
from llcompile.dataflow.nodes import read_program
from llcompile.dataflow.shapes import infer_specs
from llcompile.dataflow.templates import make_template
from llcompile.frontend.functions import local_functions
from llcompile.ir.graph import Template, TensorSpec
from tests.unit.graph.oracle import session
from tests.unit.graph.synthetic import OPSETS, Writer
from tests.unit.shard.together import Case

TOKENS = 7


def template_of(write: Callable[[Writer, str], str], **sizes: int) -> Template:
    """The template `t7` of what `write` makes of the tensor x, (1, n, hidden)."""
    w = Writer(**sizes)
    output = write(w, "x")
    spec = TensorSpec("x", "float32", (1, "n", w.hidden))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, spec.shape)]
    inputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in w.weights.items()]
    constants = [numpy_helper.from_array(value, key) for key, value in w.constants.items()]
    graph = helper.make_graph(w.nodes, "block", inputs, [], constants)
    proto = helper.make_model(graph, opset_imports=OPSETS, functions=local_functions(), ir_version=10)
    flow = read_program(proto.SerializeToString())
    flow = replace(flow, weights=w.weights, given={"x": spec})
    specs = infer_specs(flow)
    form = canonicalize(flow, specs, flow.nodes, (output,), frozenset())
    return make_template("t7", form, flow, specs)


def case_of(template: Template, seed: int = 0) -> Case:
    """Random inputs and weights, and what the block makes of them."""
    rng = np.random.default_rng(seed)

    def drawn(shape: tuple[int | str, ...]) -> np.ndarray:
        sizes = [dim if isinstance(dim, int) else TOKENS for dim in shape]
        return rng.standard_normal(sizes).astype(np.float32) * 0.3

    ids = {"position_ids": np.arange(TOKENS)[None]}
    inputs = [ids.get(spec.name, drawn(spec.shape)) for spec in template.inputs]
    weights = [drawn(weight.shape) for weight in template.weights]
    names = [spec.name for spec in (*template.inputs, *template.weights)]
    feeds = dict(zip(names, [*inputs, *weights], strict=True))
    outputs = session(template.onnx).run([spec.name for spec in template.outputs], feeds)
    return Case(template, inputs, weights, outputs)
