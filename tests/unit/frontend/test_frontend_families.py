"""Every family's exported graph, run by onnxruntime, gives transformers' logits; and it is canonical."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from llcompile.frontend import load_model
from llcompile.frontend.canonical.check import OWN, STANDARD
from llcompile.ir.model import Model
from tests.models import FAMILIES, VOCAB, build, loaded, prompt, reference_greedy, reference_logits, save
from tests.unit.frontend.execution import error, run

# Per layer: windows, caps and scales that the families of tests/models.py ask for.
WINDOWS = {"mistral": [16] * 3, "qwen2": [0, 16, 16], "gemma2": [16, 0, 16, 0], "gemma3": [16, 0, 16]}
SCALES = {
    "gpt2": [0.25, 0.125, 0.25 / 3],
    "gemma2": [32**-0.5] * 4,
    "opt": [1.0] * 3,
    "qwen3": [32**-0.5] * 3,
}


@dataclass(frozen=True)
class Case:
    family: str
    directory: Path
    model: Model
    graph: onnx.GraphProto


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest) -> Case:
    directory, model = loaded(request.param)
    return Case(request.param, directory, model, onnx.load_from_string(model.onnx).graph)


def test_logits_equal_transformers(case: Case) -> None:
    prompts = [prompt(n) for n in (1, 7, 61)]
    for ids, found in zip(prompts, run(case.model, prompts), strict=True):
        expected = reference_logits(case.directory, ids)
        assert found.shape == (len(ids), VOCAB)
        assert error(found, expected) < 2e-5


def test_the_oracle_text_is_diverse(case: Case) -> None:
    """Guards the tests themselves: a model that repeats one token would prove nothing."""
    assert len(set(reference_greedy(case.directory, prompt(7), 16))) > 8


def test_the_graph_is_canonical(case: Case) -> None:
    for node in case.graph.node:
        assert node.op_type in (OWN if node.domain == "llcompile" else STANDARD)
    names = [i.name for i in case.graph.input]
    assert names[:2] == ["input_ids", "position_ids"]
    assert set(names[2:]) == set(case.model.weights)
    assert not set(names) & {i.name for i in case.graph.initializer}
    assert sum(len(i.raw_data) for i in case.graph.initializer) < 4096
    dims = [d.dim_param or d.dim_value for d in case.graph.output[0].type.tensor_type.shape.dim]
    assert dims == [1, "n", VOCAB]


def test_weights_are_read_in_their_roles_only(case: Case) -> None:
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in case.graph.input}
    for node in case.graph.node:
        for index, name in enumerate(node.input):
            if name in case.model.weights and len(shapes[name]) == 2:
                assert (node.op_type, index) in {("Linear", 1), ("Embedding", 0)}
    for name, source in case.model.weights.items():
        assert list(source.shape) == shapes[name]


def test_the_sources_hold_every_parameter_once(case: Case) -> None:
    parameters = dict(build(case.family).named_parameters())
    assert len(case.model.weights) == len(parameters)
    total = sum(int(np.prod(s.shape)) for s in case.model.weights.values())
    assert total == sum(p.numel() for p in parameters.values())
    transposed = [n for n, s in case.model.weights.items() if s.transpose]
    assert len(transposed) == (12 if case.family == "gpt2" else 0)


def test_attention_carries_window_scale_softcap_and_slopes(case: Case) -> None:
    nodes = [n for n in case.graph.node if n.op_type == "Attention"]
    attributes = [{a.name: onnx.helper.get_attribute_value(a) for a in n.attribute} for n in nodes]
    layers = len(nodes)
    assert [a["layer"] for a in attributes] == list(range(layers))
    assert [a["window"] for a in attributes] == WINDOWS.get(case.family, [0] * layers)
    assert [a["softcap"] for a in attributes] == [5.0 if case.family == "gemma2" else 0.0] * layers
    scales = SCALES.get(case.family)
    if scales:
        assert [a["scale"] for a in attributes] == pytest.approx(scales)
    slopes = [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]  # six heads: those of four, then every other of eight
    assert [a.get("alibi", []) for a in attributes] == [slopes if case.family == "bloom" else []] * layers


@pytest.mark.parametrize(("dtype", "stored"), [(torch.float16, "f16"), (torch.bfloat16, "bf16")])
def test_half_precision_shards(tmp_path: Path, dtype: torch.dtype, stored: str) -> None:
    """Sharded checkpoints of 2-byte floats; the graph is the one of float32."""
    directory = save("llama", tmp_path, dtype=dtype, shard="200KB")
    model = load_model(str(directory))
    assert {s.dtype for s in model.weights.values()} == {stored}
    assert len({s.path for s in model.weights.values()}) > 2
    found = run(model, [prompt(7)])[0]
    assert error(found, reference_logits(directory, prompt(7))) < 2e-5
