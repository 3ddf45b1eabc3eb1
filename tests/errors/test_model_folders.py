"""Folders that are no model, or not one alone: what they are is said, and what to do, before any long work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from llcompile.frontend import load_model
from llcompile.frontend.source import locate
from llcompile.frontend.tokenizer import read_tokenizer
from llcompile.ir.errors import CompileError

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text(json.dumps(LLAMA))
    return made


def refused(folder: Path, code: str) -> str:
    with pytest.raises(CompileError) as caught:
        load_model(str(folder), 1)
    assert (caught.value.code, caught.value.exit_code) == (code, 2)
    return caught.value.message


@pytest.mark.parametrize("with_config", [True, False])
def test_an_adapter_is_not_a_model(folder: Path, with_config: bool) -> None:
    (folder / "adapter_config.json").write_text("{}")
    if not with_config:
        (folder / "config.json").unlink()
    message = refused(folder, "F102")
    assert "LoRA adapter" in message
    assert "Merge it first" in message


@pytest.mark.parametrize(("main", "named"), [("aaaa", "aaaa"), (None, "bbbb"), ("gone", "bbbb")])
def test_a_folder_of_the_hubs_cache_names_its_snapshot(tmp_path: Path, main: str | None, named: str) -> None:
    for commit in ("aaaa", "bbbb"):
        (tmp_path / "snapshots" / commit).mkdir(parents=True)
        (tmp_path / "snapshots" / commit / "config.json").write_text("{}")
    if main:
        (tmp_path / "refs").mkdir()
        (tmp_path / "refs" / "main").write_text(main + "\n")
    message = refused(tmp_path, "F100")
    assert f"Use the snapshot in it: {tmp_path / 'snapshots' / named}" in message


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "model-00001-of-00002.safetensors", "tokenizer.json"]
)
def test_a_link_out_of_the_folder_is_refused(folder: Path, name: str) -> None:
    secret = folder.parent / "secret.json"
    secret.write_text(json.dumps(LLAMA))
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("../secret.json")
    message = refused(folder, "F103")
    assert f"{folder / name} is a link to {secret}" in message


def test_links_within_the_folder_and_to_a_snapshots_blobs_are_followed(tmp_path: Path) -> None:
    cache = tmp_path / "models--a--b"
    snapshot = cache / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    (cache / "blobs" / "1").write_text(json.dumps(LLAMA))
    (snapshot / "config.json").symlink_to("../../blobs/1")
    (snapshot / "generation_config.json").symlink_to("config.json")
    (snapshot / "README.md").symlink_to("/etc/hostname")  # not read
    assert locate(str(snapshot), weights=True) == (snapshot, "c0ffee")
    (tmp_path / "named").symlink_to(snapshot)  # the user's own link
    assert locate(str(tmp_path / "named"), weights=True) == (snapshot, "c0ffee")


def test_blobs_lead_no_further(tmp_path: Path) -> None:
    """Neither a folder called blobs that is a link, nor a blob that is one."""
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1").write_text(json.dumps(LLAMA))
    (tmp_path / "models--a--b" / "blobs").symlink_to("../elsewhere")
    (snapshot / "config.json").symlink_to("../../blobs/1")
    refused(snapshot, "F103")
    (tmp_path / "models--a--b" / "blobs").unlink()
    (tmp_path / "models--a--b" / "blobs").mkdir()
    (tmp_path / "models--a--b" / "blobs" / "1").symlink_to("../../elsewhere/1")
    refused(snapshot, "F103")


def test_a_link_that_leads_to_itself(folder: Path) -> None:
    (folder / "model.safetensors").symlink_to("model.safetensors")
    with pytest.raises(CompileError) as caught:
        load_model(str(folder))
    assert caught.value.code == "F141"


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "[1, -1e999]"])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_numbers_that_are_none(folder: Path, name: str, value: str) -> None:
    document = json.dumps(LLAMA)[:-1] + f', "initializer_range": {value}}}'
    (folder / name).write_text(document)
    message = refused(folder, "F110")
    assert name in message
    assert value.strip("[]").split()[-1] in message


@pytest.mark.parametrize(
    "text", ["", "{}", "{broken", "[" * 10_000, '{"version": "1.0", "model": {"type": "BPE"}}']
)
def test_a_tokenizer_that_cannot_be_read(folder: Path, text: str) -> None:
    (folder / "tokenizer.json").write_text(text)
    message = refused(folder, "F161")
    assert str(folder / "tokenizer.json") in message
    assert "--prompt-ids" in message


def tokenizer(folder: Path, words: int, added: int = 0) -> Path:
    made = Tokenizer(models.WordLevel({f"w{i}": i for i in range(words)}, "w0"))
    made.add_tokens([f"<{i}>" for i in range(added)])
    made.save(str(folder / "tokenizer.json"))
    return folder


def test_a_tokenizer_of_another_model(folder: Path) -> None:
    message = refused(tokenizer(folder, 51), "F163")
    assert "token ids up to 50, the model has 50" in message


def test_added_tokens_beyond_the_vocabulary_are_noted(folder: Path) -> None:
    tokenizer(folder, 49, added=3)
    found, (note,) = read_tokenizer(folder, [str(folder / "tokenizer.json")], 50)
    assert found is not None
    assert "2 added tokens beyond the model's 50 (the first: '<1>', 50)" in note
    assert read_tokenizer(folder, [str(folder / "tokenizer.json")], 52)[1] == ()


def test_an_older_tokenizer_that_cannot_be_converted_is_noted(folder: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_text("{broken")
    _, (note,) = read_tokenizer(folder, (), 50)
    assert str(folder) in note
    assert "takes token ids alone" in note
