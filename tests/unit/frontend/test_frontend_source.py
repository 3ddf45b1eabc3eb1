"""Where a model comes from: local directories, the hub's cache, and the tokenizer's files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from llcompile.frontend import source
from llcompile.frontend.tokenizer import tokenizer_files
from llcompile.ir.errors import CompileError


def test_a_directory_is_named_after_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my-model").mkdir()
    (tmp_path / "my-model" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "my-model")
    for spelling in (".", "../my-model", str(tmp_path / "my-model")):
        assert source.locate(spelling, weights=True) == (tmp_path / "my-model", "my-model")


def response(status: int) -> httpx2.Response:
    return httpx2.Response(status, request=httpx2.Request("GET", "https://example.invalid"))


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (GatedRepoError("no", response=response(403)), "access to it is restricted.*hf auth login"),
        (RepositoryNotFoundError("no", response=response(404)), "no such model.*hf auth login"),
        (HfHubHTTPError("no", response=response(500)), "fetching it failed.*Try again"),
        (ConnectionError("down"), "fetching it failed.*local directory"),
    ],
)
def test_failures_of_the_hub(failure: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_options: Any) -> str:
        raise failure

    monkeypatch.setattr(source, "snapshot_download", fail)
    with pytest.raises(CompileError, match=message) as caught:
        source.locate("owner/name", weights=True)
    assert caught.value.code == "F101"
    assert caught.value.message.startswith("owner/name: ")


def test_only_needed_files_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    (tmp_path / "config.json").write_text("{}")

    def download(model: str, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(source, "snapshot_download", download)
    assert source.locate("owner/name", weights=True) == (tmp_path, "owner/name")
    source.locate("owner/name", weights=False)
    assert [any("safetensors" in p for p in patterns) for patterns in asked] == [True, False]
    assert not any(p.endswith((".bin", ".py")) for patterns in asked for p in patterns)


def test_the_cache_serves_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot laid out as the hub's client lays it out is found without a network; another id is not."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    folder, commit = tmp_path / "models--owner--name", "0" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "snapshots" / commit / "config.json").write_text("{}")
    assert source.locate("owner/name", weights=False)[0] == folder / "snapshots" / commit
    with pytest.raises(CompileError, match="not in the local cache, and HF_HUB_OFFLINE is set") as caught:
        source.locate("owner/other", weights=False)
    assert caught.value.code == "F101"


def test_tokenizer_files_are_those_that_exist(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "chat_template.jinja", "other.json"):
        (tmp_path / name).write_text("{}")
    assert tokenizer_files(tmp_path) == (
        str(tmp_path / "tokenizer.json"),
        str(tmp_path / "chat_template.jinja"),
    )


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory as facebook/opt-125m has it: vocab.json and merges.txt, no tokenizer.json."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["</s>", "<pad>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["the cat sat on the mat, the cat sat"] * 5, trainer)
    (tmp_path / "model").mkdir()
    tokenizer.model.save(str(tmp_path / "model"))
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "opt"}))
    return tmp_path / "model"


def test_an_older_tokenizer_is_converted(slow: Path) -> None:
    (made,) = tokenizer_files(slow)
    assert Path(made).is_relative_to(slow.parent / "cache")
    tokenizer = Tokenizer.from_file(made)
    text = "the cat sat"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert len(ids) < len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer_files(slow) == (made,)


def test_an_unreadable_older_tokenizer_is_left_out(slow: Path) -> None:
    (slow / "vocab.json").write_text("{broken")
    assert tokenizer_files(slow) == ()
    shutil.rmtree(slow.parent / "cache", ignore_errors=True)
