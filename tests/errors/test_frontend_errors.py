"""Models that cannot be compiled: one clear error with its place and remedy, before any long work where possible."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llcompile.frontend import load_model
from llcompile.frontend.canonical.check import RequireCanonical
from llcompile.ir.errors import CompileError
from tests.golden.frontend_graphs import build
from tests.models import loaded

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def refused(path: Path, config: object, seed: int | None = 1) -> CompileError:
    text = config if isinstance(config, str) else json.dumps(config)
    (path / "config.json").write_text(text)
    with pytest.raises(CompileError) as caught:
        load_model(str(path), seed)
    assert caught.value.exit_code == 2
    assert "Traceback" not in caught.value.message
    return caught.value


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"x"', "\x00", "[" * 50_000, '{"a": ' + "9" * 9000 + "}"]
)
def test_malformed_configuration(tmp_path: Path, text: str) -> None:
    error = refused(tmp_path, text)
    assert error.code == "F110"
    assert "config.json" in error.message


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; it must be 1 to 1024"),
        ({"num_hidden_layers": -3}, "num_hidden_layers is -3"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"num_hidden_layers": 1.5}, "num_hidden_layers"),
        ({"hidden_size": 10**12}, "hidden_size is 1000000000000"),
        ({"hidden_size": 30}, "hidden.size.*multiple.*"),
        ({"num_attention_heads": 0}, ".*"),
        ({"num_attention_heads": 3, "hidden_size": 36}, "3 is not a multiple of num_key_value_heads 2"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
        ({"head_dim": -8}, "head_dim is -8"),
        ({"head_dim": 7}, "LlamaForCausalLM|head_dim"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"vocab_size": True}, "vocab_size"),
        ({"intermediate_size": -1}, "intermediate_size is -1"),
        ({"max_position_embeddings": -1}, "max_position_embeddings is -1"),
        ({"hidden_act": "no_such_function"}, "no_such_function"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"rope_scaling": {"rope_type": "no_such"}}, "no_such"),
        ({"rope_scaling": "linear"}, ".*"),
        ({"rope_theta": "x"}, ".*"),
        ({"initializer_range": "x"}, "initializer_range"),
        ({"initializer_range": -0.1}, "initializer_range"),
        ({"eos_token_id": "x"}, "eos_token_id|token id 'x'"),
    ],
)
def test_values_that_cannot_be(tmp_path: Path, change: dict[str, object], named: str) -> None:
    error = refused(tmp_path, LLAMA | change)
    assert error.code in ("F111", "F113")
    assert re.search(named, error.message)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (
            {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
            "BertForMaskedLM is not a decoder-only",
        ),
        (
            {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]},
            "T5ForConditionalGeneration is not",
        ),
        ({"model_type": "vit"}, "architecture vit is not a decoder-only"),
        (
            {**LLAMA, "architectures": ["LlamaForSequenceClassification"]},
            "LlamaForSequenceClassification is not",
        ),
        ({"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}, "routes tokens to experts"),
        ({"model_type": "no_such"}, "'no_such' is not known to transformers"),
        ({"model_type": 5}, "model_type 5"),
        ({}, "model_type None"),
        (
            {"model_type": "custom", "auto_map": {"AutoConfig": "x.C"}},
            "code of the checkpoint's own is never run",
        ),
        ({**LLAMA, "quantization_config": {"quant_method": "gptq"}}, "the checkpoint is quantised"),
        ({**LLAMA, "is_encoder_decoder": True}, "attends to an encoder"),
        ({**LLAMA, "architectures": "LlamaForCausalLM"}, "not a list of names"),
    ],
)
def test_architectures_that_are_not_supported(tmp_path: Path, config: dict[str, object], named: str) -> None:
    error = refused(tmp_path, config)
    assert error.code in ("F110", "F112")
    assert named in error.message


def test_code_of_the_checkpoint_is_not_run(tmp_path: Path) -> None:
    """A supported architecture with an auto_map is built by transformers' own class; the file stays unread."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: ...\n")
    remote = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C"}
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"auto_map": remote}))
    assert load_model(str(tmp_path), 1).architecture == "LlamaForCausalLM"
    assert not (tmp_path / "ran").exists()


def test_operator_and_module_at_fault_are_named(tmp_path: Path) -> None:
    """Mamba has no attention: what is left in its mixer is not canonical."""
    config = {
        "model_type": "mamba",
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "state_size": 4,
    }
    error = refused(tmp_path, config | {"num_attention_heads": 1})
    assert error.code == "F120"
    assert "in module backbone.layers.0.mixer" in error.message


def test_module_that_cannot_be_traced_is_named(tmp_path: Path) -> None:
    error = refused(
        tmp_path, {"model_type": "mpt", "vocab_size": 50, "d_model": 32, "n_heads": 4, "n_layers": 1}
    )
    assert error.code == "F122"
    assert "MptForCausalLM cannot be compiled: module transformer" in error.message


def test_a_mask_that_attention_does_not_carry(tmp_path: Path) -> None:
    """Llama's attention knows no window: a layer type that asks for one would be ignored."""
    error = refused(tmp_path, LLAMA | {"layer_types": ["sliding_attention"], "sliding_window": 8})
    assert error.code == "F133"
    assert "layer 0 is of type sliding_attention, but its attention has window 0" in error.message


@pytest.mark.parametrize(
    ("graph", "weights", "message"),
    [
        ("(float[1,n,4] x) => (float[1,n,4] y) {y = Softmax(x)}", (), "Softmax in module .*not supported"),
        (
            "(float[4,4] x, float[4,4] w) => (float[4,4] y) {y = Mul(x, w)}",
            ("w",),
            "Mul .*reads the weight w",
        ),
        ("(float[4] x, int64[1] s) => (float[4] y) {y = Reshape(x, s)}", (), "Reshape .*depends on more"),
        ("(float[4] x) => (float[4] y) {y = llcompile.Add(x, x)}", (), r"llcompile\.Add in module"),
    ],
)
def test_what_is_not_canonical(graph: str, weights: tuple[str, ...], message: str) -> None:
    model = build("g " + graph, weights)
    with pytest.raises(CompileError, match=message) as caught:
        RequireCanonical().run(model)
    assert caught.value.code == "F120"


def test_attention_outside_the_interface(tmp_path: Path) -> None:
    config = {"model_type": "falcon", "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1}
    error = refused(tmp_path, config | {"num_attention_heads": 2})
    assert error.code == "F134"
    assert "FalconForCausalLM has attention code of its own" in error.message


def test_a_layer_that_is_not_causal(tmp_path: Path) -> None:
    error = refused(tmp_path, LLAMA | {"model_type": "bert", "architectures": ["BertLMHeadModel"]})
    assert error.code == "F130"
    assert "BertSelfAttention attends without a causal order" in error.message


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("no/such/directory", "F100", "no such directory"),
        ("./nothing-here", "F100", "no such directory"),
        ("", "F100", "config.json|no such directory"),
        ("a b", "F100", "no such directory"),
        ("model.gguf", "F100", "no such directory"),
    ],
)
def test_places_that_are_none(
    name: str, code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CompileError, match=message) as caught:
        load_model(name)
    assert caught.value.code == code


def test_a_file_and_an_empty_directory(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"holds no config\.json"):
        load_model(str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(CompileError, match="is a file and no GGUF file; a model is a directory"):
        load_model(str(tmp_path / "file"))


def test_without_weights_and_without_a_seed(tmp_path: Path) -> None:
    error = refused(tmp_path, LLAMA, None)
    assert "--random-weights SEED" in error.message
    assert str(tmp_path) in error.message


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    source, _ = loaded("llama")
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    return tmp_path, load_file(source / "model.safetensors")


def refused_weights(directory: Path, tensors: dict[str, np.ndarray]) -> CompileError:
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(CompileError) as caught:
        load_model(str(directory))
    return caught.value


def test_missing_weights_are_listed(checkpoint: tuple[Path, dict[str, np.ndarray]]) -> None:
    directory, tensors = checkpoint
    kept = {name: t for name, t in tensors.items() if "layers.1." not in name}
    error = refused_weights(directory, kept)
    assert error.code == "F150"
    assert "lacks 9 of 30 weights" in error.message
    assert error.message.count("model.layers.1.") == 5
    assert "and 4 more" in error.message


def test_an_output_table_that_is_missing_may_be_tied(checkpoint: tuple[Path, dict[str, np.ndarray]]) -> None:
    directory, tensors = checkpoint
    error = refused_weights(directory, {name: t for name, t in tensors.items() if name != "lm_head.weight"})
    assert error.code == "F150"
    assert "lacks 1 of 30 weights: lm_head.weight" in error.message
    assert '"tie_word_embeddings": true' in error.message


def packed(tensors: dict[str, np.ndarray], how: str) -> dict[str, np.ndarray]:
    """The checkpoint as quantisers write it: GPTQ without "weight", MLX of another shape, FP8."""
    name = "model.layers.0.mlp.up_proj"
    rest = {key: t for key, t in tensors.items() if key != f"{name}.weight"}
    return (
        rest
        | {
            "gptq": {
                f"{name}.qweight": np.zeros((12, 160), np.int32),
                f"{name}.qzeros": np.zeros(2, np.int32),
            },
            "mlx": {
                f"{name}.weight": np.zeros((160, 12), np.uint32),
                f"{name}.scales": np.zeros((160, 2), np.float16),
            },
            "fp8": {
                f"{name}.weight": np.zeros((160, 96), np.uint8),
                f"{name}.weight_scale_inv": np.ones(2, np.float32),
            },
        }[how]
    )


@pytest.mark.parametrize(
    ("how", "named"),
    [("gptq", "up_proj.qweight"), ("mlx", "up_proj.scales"), ("fp8", "up_proj.weight_scale_inv")],
)
def test_a_quantised_checkpoint_is_called_one(
    checkpoint: tuple[Path, dict[str, np.ndarray]], how: str, named: str
) -> None:
    directory, tensors = checkpoint
    error = refused_weights(directory, packed(tensors, how))
    assert error.code == "F152"
    assert f"the checkpoint is quantised (it holds model.layers.0.mlp.{named}" in error.message


def test_misfitting_and_wrongly_typed_weights_are_named(
    checkpoint: tuple[Path, dict[str, np.ndarray]],
) -> None:
    directory, tensors = checkpoint
    error = refused_weights(directory, tensors | {"model.norm.weight": np.ones(95, np.float32)})
    assert error.code == "F151"
    assert "model.norm.weight is [95], config.json asks for [96]" in error.message
    error = refused_weights(directory, tensors | {"model.norm.weight": np.ones(96, np.float64)})
    assert error.code == "F142"
    assert "model.norm.weight is F64" in error.message
