"""Runs a whole model and its blocks with onnxruntime: the two must agree."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime as ort

from llcompile.ir.graph import Graph, Template, TensorSpec
from llcompile.ir.model import Model

Arrays = Mapping[str, np.ndarray]


def session(data: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def whole(model: Model, ids: Arrays, weights: Arrays) -> np.ndarray:
    logits: np.ndarray = session(model.onnx).run(["logits"], {**ids, **weights})[0]
    return logits


def last_row(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    return array.take([-1], axis=spec.shape.index("n"))


def chained(graph: Graph, ids: Arrays, weights: Arrays, is_prefill: bool = False) -> np.ndarray:
    """Logits by the positions template and then every block's template, each as a model of its own.

    With `is_prefill`, the blocks that need the last row only are given no more.
    """
    return all_tensors(graph, ids, weights, is_prefill)["logits"]


def all_tensors(
    graph: Graph, ids: Arrays, weights: Arrays, is_prefill: bool = False
) -> dict[str, np.ndarray]:
    """Every tensor between blocks, as `chained` makes them."""
    sessions = {id: session(template.onnx) for id, template in graph.templates.items()}
    tensors = dict(ids)
    if graph.positions:
        names = [spec.name for spec in graph.positions.outputs]
        made = session(graph.positions.onnx).run(names, {"position_ids": ids["position_ids"]})
        tensors.update(zip(names, made, strict=True))
    for block in graph.blocks:
        template = graph.templates[block.template]
        feeds = {spec.name: tensors[name] for spec, name in zip(template.inputs, block.inputs, strict=True)}
        if is_prefill and block.last_row_only:
            feeds = {spec.name: last_row(feeds[spec.name], spec) for spec in template.inputs}
        feeds |= {w.name: weights[name] for w, name in zip(template.weights, block.weights, strict=True)}
        made = sessions[block.template].run([spec.name for spec in template.outputs], feeds)
        tensors.update(zip(block.outputs, made, strict=True))
    return tensors


def check_template(template: Template) -> None:
    """The model is valid, and its inputs and outputs are those that the template lists, in that order."""
    proto = onnx.ModelProto.FromString(template.onnx)
    onnx.checker.check_model(proto, full_check=True)
    expected = [spec.name for spec in template.inputs] + [weight.name for weight in template.weights]
    assert [value.name for value in proto.graph.input] == expected
    assert [value.name for value in proto.graph.output] == [spec.name for spec in template.outputs]


def token_ids(length: int, vocab: int) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(length).integers(0, vocab, (1, length))
    return {"input_ids": ids, "position_ids": np.arange(length)[None]}
