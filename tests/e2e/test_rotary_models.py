"""Whole models whose rotary embedding is scaled: built at the default context, greedy tokens equal transformers'."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import transformers as tf

from tests.e2e import harness
from tests.models import draw_weights, prompt, reference_greedy

NEW_TOKENS = 12
SIZES: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
LONG = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
# (model type, what it changes, context by default)
KINDS: dict[str, tuple[str, dict[str, Any], int]] = {
    "longrope": ("phi3", {"rope_scaling": LONG, "original_max_position_embeddings": 64}, 64),
    "dynamic": ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, 256),
    "yarn": (
        "llama",
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
        256,
    ),
    "llama3": (
        "llama",
        {
            "rope_scaling": {
                **LLAMA3,
                "rope_type": "llama3",
                "factor": 8.0,
                "original_max_position_embeddings": 64,
            }
        },
        256,
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_greedy_tokens_equal_transformers_at_the_default_context(name: str, tmp_path: Path) -> None:
    kind, changes, context = KINDS[name]
    model = tf.AutoModelForCausalLM.from_config(
        tf.CONFIG_MAPPING[kind].from_dict(deepcopy({**SIZES, **changes}))
    ).eval()
    draw_weights(model, 1)
    model.save_pretrained(tmp_path / "model")
    target = harness.devices_json(tmp_path / "devices.json", 1)
    built = harness.llcompile_here(
        "build", tmp_path / "model", "--target", target, "--quant", "f32", "-o", tmp_path / "bundle"
    )
    assert built.returncode == 0, built.stderr
    assert ("note: model: --context is 64" in built.stderr) == (context == 64)
    prompts = [prompt(length) for length in (20, 40, context - NEW_TOKENS)]
    for ids, result in zip(prompts, harness.answers(tmp_path / "bundle", prompts, NEW_TOKENS), strict=True):
        assert result["tokens"] == reference_greedy(tmp_path / "model", ids, NEW_TOKENS), f"{len(ids)} tokens"
