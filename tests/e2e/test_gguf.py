"""GGUF files of every family: weights and greedy tokens equal those of transformers' loading of the same file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from llcompile.cluster import load_cluster
from llcompile.quantize import read_rows
from tests.e2e import harness
from tests.gguf_models import FAMILIES, as_transformers_loads, family_file
from tests.models import LEAST_GAP, greedy_and_gap, prompt

PROMPT_TOKENS, NEW_TOKENS = 21, 12  # more than Gemma's window of 16
BANDS = ((0, 1), (3, 77), (100, 256))


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def file(request: pytest.FixtureRequest) -> Path:
    return family_file(request.param)


@pytest.fixture(scope="module")
def loaded(file: Path) -> Path:
    return as_transformers_loads(file)


@pytest.fixture(scope="module")
def compiled(file: Path, tmp_path_factory: pytest.TempPathFactory) -> harness.CompiledModel:
    return harness.compile_model(file, tmp_path_factory.mktemp("compiled"))


def test_every_weight_has_the_bits_that_transformers_gives_it(
    compiled: harness.CompiledModel, loaded: Path
) -> None:
    expected = load_file(loaded / "model.safetensors")
    assert set(compiled.model.weights) == set(expected)
    for name, source in compiled.model.weights.items():
        rows = source.shape[0]
        np.testing.assert_array_equal(read_rows(source, 0, rows), expected[name], name)
        for start, stop in BANDS:
            stop = min(stop, rows)
            if start < stop:
                np.testing.assert_array_equal(
                    read_rows(source, start, stop), expected[name][start:stop], name
                )


def test_greedy_tokens_equal_transformers(
    compiled: harness.CompiledModel, file: Path, loaded: Path, tmp_path: Path
) -> None:
    ids, expected = next(clear for seed in range(8) if (clear := _clear(loaded, seed)) is not None)
    target = harness.devices_json(tmp_path / "devices.json", 2)
    wishes = harness.options(file, target, "f32", use_all=True, tensor_parallel="off", spare="none")
    planned = compiled.bundle(tmp_path / "bundle", load_cluster(target), wishes)
    assert len(planned.plan.devices) == 2
    (result,) = harness.answers(tmp_path / "bundle", [ids], NEW_TOKENS)
    assert result["tokens"] == expected


def _clear(loaded: Path, seed: int) -> tuple[list[int], list[int]] | None:
    """A prompt and its continuation by transformers, where no rounding can change it and it is no one token."""
    ids = prompt(PROMPT_TOKENS, seed)
    tokens, gap = greedy_and_gap(loaded, ids, NEW_TOKENS)
    return (ids, tokens) if gap > LEAST_GAP and len(set(tokens)) > NEW_TOKENS // 3 else None
