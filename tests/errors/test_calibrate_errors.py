"""Models and texts that cannot be calibrated on: one clear error with its place and remedy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from llcompile import cli
from llcompile.frontend import load_model, read_text, text_ids
from llcompile.graph import build_graph
from llcompile.ir.errors import CompileError
from llcompile.ir.model import Model
from llcompile.pipeline import BuildOptions
from llcompile.quantize import calibrate, measure
from llcompile.rounding import calibration_sequences, calibration_text, check_bits
from llrun.schema import CacheFormat
from tests.models import build, loaded

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "python-llama"


def with_weight(folder: Path, name: str, value: float) -> Model:
    """A Llama one matrix of which holds `value` everywhere."""
    model = build("llama")
    with torch.no_grad():
        model.get_parameter(name).fill_(value)
    model.save_pretrained(folder / "model")
    return load_model(str(folder / "model"))


def refused(model: Model, folder: Path) -> CompileError:
    with pytest.raises(CompileError) as caught:
        calibrate(build_graph(model), model.weights, [np.arange(9)], folder, jobs=2)
    assert caught.value.exit_code == 2
    return caught.value


def test_activations_that_are_not_finite_name_the_block(tmp_path: Path) -> None:
    error = refused(with_weight(tmp_path, "model.layers.1.mlp.up_proj.weight", 3e38), tmp_path / "out")
    assert error.code == "Q108"
    assert "block 4" in error.message
    assert "model.layers.1.mlp.down_proj.weight" in error.message
    assert "--calibrate none" in error.message


def with_large(folder: Path, name: str, largest: float) -> Model:
    """A Llama whose rows of `name`, keys or values of layer 1, are scaled until they reach `largest` on 9 tokens."""
    model = build("llama")
    with torch.no_grad():
        seen: list[torch.Tensor] = []
        layer = model.get_submodule(name.removesuffix(".weight"))
        layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        model(input_ids=torch.arange(9)[None])
        model.get_parameter(name).mul_(largest / seen[0].abs().max())
        layer._forward_hooks.clear()
    model.save_pretrained(folder / "model")
    return load_model(str(folder / "model"))


@pytest.mark.parametrize(
    ("what", "largest", "refusals"),
    [
        ("v", 66_000.0, {"f16": "--cache q8, which holds up to 8319008"}),
        ("v", 9e6, {"f16": "--quant f32", "q8": "--quant f32"}),
        ("k", 3e5, {"f16": "--cache q8"}),
    ],
)
def test_what_the_cache_cannot_hold_names_the_layer(
    tmp_path: Path, what: str, largest: float, refusals: dict[str, str]
) -> None:
    model = with_large(tmp_path, f"model.layers.1.self_attn.{what}_proj.weight", largest)
    graph = build_graph(model)
    for cache in CacheFormat:
        folder = tmp_path / cache
        if cache not in refusals:
            assert calibrate(graph, model.weights, [np.arange(9)], folder, cache=cache).files
            continue
        with pytest.raises(CompileError) as caught:
            calibrate(graph, model.weights, [np.arange(9)], folder, cache=cache)
        assert caught.value.code == "Q109"
        named = {"k": "keys", "v": "values"}[what]
        assert f"layer 1 (block 3): its {named} reach" in caught.value.message
        assert refusals[cache] in caught.value.message
        if what == "v":
            assert f"reach {largest:.6g}," in caught.value.message


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"]
)
def test_weights_that_are_not_finite_name_the_tensor(tmp_path: Path, name: str) -> None:
    error = refused(with_weight(tmp_path, name, float("nan")), tmp_path / "out")
    assert error.code == "Q104"
    assert name in error.message


def test_a_file_that_ends_early(tmp_path: Path) -> None:
    model = with_weight(tmp_path, "model.norm.weight", 1.0)
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100_000])
    assert refused(model, tmp_path / "out").code == "Q101"


def test_an_output_that_is_not_finite_measures_nothing(tmp_path: Path) -> None:
    model = with_weight(tmp_path, "model.norm.weight", 1e38)
    with pytest.raises(CompileError, match="Without --bits") as caught:
        measure(build_graph(model), model.weights, [np.arange(9)])
    assert caught.value.code == "Q108"


def test_a_weight_that_no_format_holds_is_named_by_what_measures_it(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    model = with_weight(tmp_path, name, 9e6)
    with pytest.raises(CompileError, match=name) as caught:
        measure(build_graph(model), model.weights, [np.arange(9)])
    assert caught.value.code == "Q105"


# --- texts ---


def options(text: object, **changes: object) -> BuildOptions:
    return BuildOptions("m", Path("devices.json"), calibrate=str(text), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("content", "word"), [(None, "No such file"), (b"caf\xe9 au lait", "UTF-8")])
def test_texts_that_cannot_be_read(tmp_path: Path, content: bytes | None, word: str) -> None:
    if content is not None:
        (tmp_path / "text").write_bytes(content)
    with pytest.raises(CompileError) as caught:
        calibration_text(options(tmp_path / "text"))
    assert (caught.value.code, caught.value.exit_code) == ("F160", 2)
    assert str(tmp_path / "text") in caught.value.message
    assert word in caught.value.message


def test_a_folder_in_place_of_a_text(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="Is a directory") as caught:
        read_text(tmp_path)
    assert caught.value.code == "F160"


@pytest.mark.parametrize("change", [{"quant": "q8"}, {"random_seed": 1}])
def test_a_text_where_nothing_is_calibrated(tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(CompileError) as caught:
        calibration_text(options(tmp_path / "text", **change))
    assert (caught.value.code, caught.value.exit_code) == ("F191", 2)


@pytest.mark.parametrize(
    ("change", "word"), [({"quant": "q8"}, "--quant q8"), ({"random_seed": 1}, "--bits 5.2 has no use here")]
)
def test_bits_where_they_choose_nothing(change: dict[str, object], word: str) -> None:
    with pytest.raises(CompileError, match=word) as caught:
        check_bits(options("random", bits=5.2, **change))
    assert (caught.value.code, caught.value.exit_code) == ("F192", 2)


@pytest.mark.parametrize("bits", ["4.4", "8.6", "nan", "four"])
def test_bits_that_no_format_has(bits: str) -> None:
    done = CliRunner().invoke(cli.main, ["plan", "m", "--target", "devices.json", "--bits", bits])
    assert done.exit_code == 2
    assert "--bits" in done.output


def test_a_text_without_a_tokenizer() -> None:
    with pytest.raises(CompileError, match="has no tokenizer") as caught:
        text_ids("def f(x):\n    return x\n" * 99, loaded("llama")[1], 2048)
    assert (caught.value.code, caught.value.exit_code) == ("F161", 2)


def test_a_damaged_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    model = replace(tokenized(), tokenizer_files=(str(tmp_path / "tokenizer.json"),))
    with pytest.raises(CompileError, match="cannot be read") as caught:
        text_ids("def f(x):\n    return x\n" * 99, model, 2048)
    assert (caught.value.code, caught.value.exit_code) == ("F161", 2)


def tokenized() -> Model:
    """A model, and the example's tokenizer, of 2048 ids."""
    return replace(loaded("llama")[1], tokenizer_files=(str(EXAMPLE / "tokenizer.json"),), vocab_size=2048)


def test_a_text_that_is_too_short() -> None:
    with pytest.raises(CompileError, match=r"is \d+ tokens long, 128 are needed") as caught:
        text_ids("def f(x):\n    return x\n", tokenized(), 2048)
    assert (caught.value.code, caught.value.exit_code) == ("F162", 2)


def test_a_tokenizer_of_another_model() -> None:
    with pytest.raises(CompileError, match="belongs to another model") as caught:
        text_ids("def f(x):\n    return x\n" * 99, replace(tokenized(), vocab_size=30), 2048)
    assert (caught.value.code, caught.value.exit_code) == ("F163", 2)


# --- what is calibrated on ---


def test_a_text_is_read_as_far_as_it_is_used() -> None:
    text = "".join(f"def f{i}(x):\n    return x + {i}\n" for i in range(400))
    cut = calibration_sequences(options("text"), tokenized(), text)
    assert [len(one) for one in cut] == [256] * 8
    assert np.concatenate(cut).tolist() == text_ids(text, tokenized(), 10**6)[:2048]


@pytest.mark.parametrize("change", [{"quant": "q8"}, {"quant": "f16"}, {"calibrate": "none"}])
def test_only_4_bits_are_calibrated(change: dict[str, str]) -> None:
    wishes = replace(options("random"), **change)  # type: ignore[arg-type]
    assert calibration_sequences(wishes, loaded("llama")[1], None) == []
    assert len(calibration_sequences(options("random"), loaded("llama")[1], None)) == 8


def test_random_weights_are_not_calibrated() -> None:
    model = replace(loaded("llama")[1], random_seed=1)
    assert calibration_sequences(options("random"), model, None) == []
