"""Rotary embeddings whose frequencies depend on the text's length: as transformers has them, up to a length that is
told, and refused by name beyond it."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from llcompile.frontend import load_model
from llcompile.frontend.rotary import fix_frequencies
from llcompile.ir.errors import CompileError
from llcompile.ir.model import Model
from llcompile.pipeline import BuildOptions, context_of, notes_on
from tests.models import draw_weights, prompt, reference_logits
from tests.unit.frontend.execution import error, run

SIZES: dict[str, Any] = {
    "vocab_size": 500,
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
BASE = {"rope_theta": 10000.0}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
PHI3_LONG = {"rope_scaling": {**LONG, "type": "longrope"}, "sliding_window": None}
GEMMA3_LONG = {
    "head_dim": 16,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"],
    "rope_parameters": {
        "sliding_attention": {**BASE, "rope_type": "default"},
        "full_attention": {**BASE, **LONG, "original_max_position_embeddings": 64},
    },
}
# (model type, what it changes, the most positions)
KINDS: dict[str, tuple[str, dict[str, Any], int]] = {
    "phi3-longrope": ("phi3", {**PHI3_LONG, "original_max_position_embeddings": 64}, 64),
    "llama-longrope-of-a-factor": (
        "llama",
        {"rope_parameters": {**BASE, **LONG, "factor": 3.0, "original_max_position_embeddings": 64}},
        64,
    ),
    "llama-longrope-of-an-attention-factor": (
        "llama",
        {
            "rope_parameters": {
                **BASE,
                **LONG,
                "attention_factor": 1.4,
                "original_max_position_embeddings": 64,
            }
        },
        64,
    ),
    "phi3-longrope-never-long": ("phi3", {**PHI3_LONG, "original_max_position_embeddings": 256}, 256),
    "gemma3-longrope-in-some-layers": ("gemma3_text", GEMMA3_LONG, 64),
    "llama-dynamic": ("llama", {"rope_parameters": {**BASE, "rope_type": "dynamic", "factor": 4.0}}, 256),
    "llama-yarn-of-an-attention-factor": (
        "llama",
        {
            "rope_parameters": {
                **BASE,
                "rope_type": "yarn",
                "factor": 4.0,
                "attention_factor": 0.7,
                "original_max_position_embeddings": 64,
            }
        },
        256,
    ),
    "llama-yarn-of-scales": (
        "llama",
        {
            "rope_parameters": {
                **BASE,
                "rope_type": "yarn",
                "factor": 4.0,
                "mscale": 1.0,
                "mscale_all_dim": 0.5,
                "original_max_position_embeddings": 64,
            }
        },
        256,
    ),
}


def saved(kind: str, changes: dict[str, Any], path: Path) -> Path:
    config = tf.CONFIG_MAPPING[kind].from_dict(deepcopy({**SIZES, **changes}))
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    draw_weights(model, 1)
    model.save_pretrained(path)
    return path


@cache
def exported(name: str) -> tuple[Path, Model]:
    """The directory of a kind and the frontend's Model of it."""
    directory = Path(tempfile.mkdtemp(prefix="llcompile-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    kind, changes, _ = KINDS[name]
    saved(kind, changes, directory)
    return directory, load_model(str(directory))


@pytest.mark.parametrize("name", KINDS)
def test_logits_equal_transformers_up_to_the_last_position(name: str) -> None:
    directory, model = exported(name)
    most = KINDS[name][2]
    assert model.max_positions == most
    for length in (20, 40, most):
        ids = [token % 500 for token in prompt(length)]
        expected = reference_logits(directory, ids)
        assert error(run(model, [ids])[0], expected) < 2e-5, f"{length} tokens"


@pytest.mark.parametrize("name", ["phi3-longrope", "llama-dynamic"])
def test_one_position_more_has_other_frequencies(name: str) -> None:
    """So the limit is neither too low nor too high."""
    directory, model = exported(name)
    ids = [token % 500 for token in prompt(KINDS[name][2] + 1)]
    assert error(run(model, [ids])[0], reference_logits(directory, ids)) > 1e-4


def test_the_context_is_what_is_right_and_more_is_refused(tmp_path: Path) -> None:
    _, model = exported("phi3-longrope")
    options = BuildOptions("phi3", tmp_path)
    assert context_of(options, model) == 64
    (note,) = notes_on(model, options)
    assert (
        "--context is 64, because its rotary embedding (longrope) changes its frequencies beyond 64" in note
    )
    asked = replace(options, context=65)
    with pytest.raises(
        CompileError, match=r"--context 65 .* 64 positions .*longrope.* --context 64 or less"
    ) as caught:
        context_of(asked, model)
    assert caught.value.code == "F190"
    assert notes_on(model, replace(options, context=64)) == ()


def test_a_model_without_such_a_limit_says_nothing(tmp_path: Path) -> None:
    _, model = exported("llama-yarn-of-scales")
    assert notes_on(model, BuildOptions("llama", tmp_path)) == ()
    with pytest.raises(CompileError, match=r"256 positions that .* was made for"):
        context_of(BuildOptions("llama", tmp_path, context=257), model)


class Unknown(tf.LlamaForCausalLM):  # type: ignore[misc]  # transformers is untyped here
    """Computes its frequencies in a module that says nothing of its kind."""

    def __init__(self, config: tf.LlamaConfig) -> None:
        super().__init__(config)
        self.model.rotary_emb = torch.nn.Identity()


def test_a_kind_that_no_module_shows_is_refused() -> None:
    changes = {"rope_parameters": {**BASE, "rope_type": "dynamic", "factor": 4.0}}
    model = Unknown(tf.LlamaConfig.from_dict({**SIZES, **changes}))
    with pytest.raises(CompileError, match=r"rope_type 'dynamic' .*Unknown") as caught:
        fix_frequencies(model)
    assert caught.value.code == "F112"


@pytest.mark.parametrize("value", [0, -4, 1.5, "64", True])
def test_an_original_length_that_cannot_be(value: object) -> None:
    changes = deepcopy(
        KINDS["llama-longrope-of-a-factor"][1]
    )  # transformers keeps the dictionary it is given
    model = tf.LlamaForCausalLM(tf.LlamaConfig.from_dict({**SIZES, **changes}))
    model.config.rope_parameters["original_max_position_embeddings"] = value
    with pytest.raises(CompileError, match="original_max_position_embeddings is") as caught:
        fix_frequencies(model)
    assert caught.value.code == "F111"
