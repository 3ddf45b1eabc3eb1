"""What configurations change: rotary scaling, head sizes, norms' places, a model inside a larger one.

Each exported graph against transformers; and what a Model says beside its graph.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers as tf

from llcompile.frontend import load_model
from llcompile.ir.model import Model
from tests.models import draw_weights, loaded, prompt, reference_logits, save
from tests.unit.frontend.execution import error, run

SMALL: dict[str, Any] = {
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def rope(**parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10000.0, **parameters}}


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3-rope": (
        "llama",
        {
            **rope(
                rope_type="llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=32,
            ),
            "attention_bias": True,
            "head_dim": 24,
        },
    ),
    "yarn-rope": ("llama", rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)),
    "neox-serial-full-rotary": ("gpt_neox", {"use_parallel_residual": False, "rotary_pct": 1.0}),
    "opt-norm-after-and-projections": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 32}),
    "phi3-window": ("phi3", {"sliding_window": 5}),
}


def saved(kind: str, changes: dict[str, Any], path: Path) -> Path:
    config = tf.CONFIG_MAPPING[kind].from_dict({**SMALL, **changes})
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    draw_weights(model, 1)
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_equals_transformers(name: str, tmp_path: Path) -> None:
    directory = saved(*VARIANTS[name], tmp_path)
    ids = [token % 500 for token in prompt(61)]
    found = run(load_model(str(directory)), [ids])[0]
    assert error(found, reference_logits(directory, ids)) < 2e-5


def test_the_language_model_of_a_larger_one(tmp_path: Path) -> None:
    text = {k: v for k, v in SMALL.items() if v is not None} | {"head_dim": 16, "sliding_window": 16}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = {"image_size": 28, "patch_size": 14}
    config = tf.Gemma3Config(text_config=text, vision_config=vision | sizes, mm_tokens_per_image=4)
    model = tf.Gemma3ForConditionalGeneration(config).eval()
    draw_weights(model, 0)
    model.save_pretrained(tmp_path)
    ids = [token % 500 for token in prompt(40)]
    with torch.no_grad():
        kinds = torch.zeros((1, len(ids)), dtype=torch.long)
        expected = model(input_ids=torch.tensor([ids]), token_type_ids=kinds).logits[0].numpy()
    loaded_model = load_model(str(tmp_path))
    assert loaded_model.architecture == "Gemma3ForCausalLM"
    assert all(name.startswith("language_model.") for name in loaded_model.weights)
    assert error(run(loaded_model, [ids])[0], expected) < 2e-5


def test_random_weights_need_a_configuration_only(tmp_path: Path) -> None:
    directory, checkpoint = loaded("gemma3")
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"not read")
    model = load_model(str(tmp_path), 7)
    assert model.random_seed == 7
    assert {n: s.shape for n, s in model.weights.items()} == {
        n: s.shape for n, s in checkpoint.weights.items()
    }
    assert model.onnx == checkpoint.onnx
    for name, source in model.weights.items():
        assert source.path is None
        # Gemma's norm weights are stored less one: an untrained model has zeros there.
        assert source.init == ("zeros" if name.endswith("norm.weight") else "normal")
        assert source.std == 0.02


def test_random_norms_and_biases(tmp_path: Path) -> None:
    """GPT-2, three layers: 7 norms at one; their 7 biases and 12 of linear layers at zero."""
    directory, _ = loaded("gpt2")
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    inits = [s.init for s in load_model(str(tmp_path), 1).weights.values()]
    assert (inits.count("ones"), inits.count("zeros")) == (7, 19)


def test_tied_embeddings_are_one_weight_with_two_readers() -> None:
    _, model = loaded("llama-tied")
    nodes = onnx.load_from_string(model.onnx).graph.node
    readers = [n.op_type for n in nodes if "model.embed_tokens.weight" in n.input]
    assert readers == ["Embedding", "Linear"]
    assert "lm_head.weight" not in model.weights


def test_the_same_input_gives_the_same_bytes() -> None:
    directory, model = loaded("neox")
    assert load_model(str(directory)) == model
    assert str(directory).encode() not in model.onnx
    assert b"transformers" not in model.onnx


PRINT_DIGEST = """
import hashlib, sys
from llcompile.frontend import load_model
print(hashlib.sha256(load_model(sys.argv[1], 1).onnx).hexdigest())
"""


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_hash_seed() -> None:
    """Gemma 3's own code goes through a set of its layer types, whose order changes from process to process."""
    directory, model = loaded("gemma3")
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", PRINT_DIGEST, str(directory)]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        assert done.stdout.strip() == hashlib.sha256(model.onnx).hexdigest()


def test_checkpoints_of_the_base_model_alone(tmp_path: Path) -> None:
    """GPT-2's and BLOOM's first checkpoints have no "transformer." before their names."""
    from safetensors.numpy import load_file, save_file

    directory = save("gpt2", tmp_path)
    file = directory / "model.safetensors"
    tensors = {name.removeprefix("transformer."): t for name, t in load_file(file).items()}
    save_file(tensors | {"h.0.attn.bias": np.ones((1, 1, 4, 4), np.uint8)}, file)
    model: Model = load_model(str(directory))
    assert "h.0.attn.c_attn.weight" in model.weights
    assert "h.0.attn.bias" not in model.weights
    _, whole = loaded("gpt2")
    assert error(run(model, [prompt(7)])[0], run(whole, [prompt(7)])[0]) < 1e-6
