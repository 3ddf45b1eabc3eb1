"""tie_word_embeddings and a stored lm_head.weight: what is stored decides, as in transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from llcompile.frontend import load_model
from llcompile.frontend.checkpoint import read_checkpoint
from llcompile.frontend.tied import equal
from tests.models import prompt, reference_logits, save
from tests.unit.frontend.execution import error, run

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def with_head(directory: Path, change: float) -> Path:
    """A tied Llama whose checkpoint also holds an output table: the embedding's, one value of it changed."""
    save("llama-tied", directory)
    tensors = load_file(directory / "model.safetensors")
    head = tensors[EMBEDDING].copy()
    head[::2] *= 1 + change
    save_file(tensors | {HEAD: head}, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def test_two_tables_that_differ_are_both_used(tmp_path: Path) -> None:
    directory = with_head(tmp_path, -2.0)
    model = load_model(str(directory))
    assert {EMBEDDING, HEAD} <= set(model.weights)
    (note,) = model.notes
    assert f"ties {HEAD} to {EMBEDDING}" in note
    ids = prompt(30)
    found, expected = run(model, [ids])[0], reference_logits(directory, ids)
    assert error(found, expected) < 2e-5
    assert (found.argmax(-1) == expected.argmax(-1)).all()


def test_identical_copies_are_stored_once(tmp_path: Path) -> None:
    model = load_model(str(with_head(tmp_path, 0.0)))
    readers = [n.op_type for n in onnx.load_from_string(model.onnx).graph.node if EMBEDDING in n.input]
    assert readers == ["Embedding", "Linear"]
    assert HEAD not in model.weights
    assert model.notes == ()


@pytest.mark.parametrize(("row", "same"), [(None, True), (0, False), (-1, False)])
def test_tables_are_compared_by_value_to_their_ends(
    tmp_path: Path, row: int | None, same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llcompile.frontend.tied._BAND", 100)
    table = np.arange(1024, dtype=np.float32).reshape(32, 32)
    other = table.astype(np.float16)
    if row is not None:
        other[row, row] += 1
    save_file({"a": table, "b": other, "c": table.reshape(64, 16)}, tmp_path / "model.safetensors")
    stored = read_checkpoint(tmp_path)
    assert equal("a", "b", stored) is same
    assert not equal("a", "c", stored)
