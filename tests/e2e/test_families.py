"""Every family over one to four devices: greedy tokens equal transformers'."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from llcompile.cluster import load_cluster
from tests.e2e import harness
from tests.models import FAMILIES, prompt, reference_logits, save

PROMPTS = (1, 7, 61, 200)
NEW_TOKENS = 24
LEAST_GAP = 1e-3


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(request.param, tmp_path_factory.mktemp(request.param) / request.param)


@pytest.fixture(scope="module")
def compiled(family: Path) -> harness.CompiledModel:
    return harness.compile_model(family, family.parent / "compiled")


@pytest.fixture(scope="module")
def expected(family: Path) -> list[tuple[list[int], list[int]]]:
    """Prompts and their greedy continuations by transformers, which are diverse and clear-cut."""
    return [clear_cut(family, length) for length in PROMPTS]


def clear_cut(model: Path, length: int) -> tuple[list[int], list[int]]:
    """The first random prompt whose continuation is diverse, and leads by a gap at each token that no
    rounding can close."""
    for seed in range(20):
        ids = prompt(length, seed)
        tokens, gap = greedy(model, ids)
        if gap > LEAST_GAP and len(set(tokens)) >= NEW_TOKENS // 2:
            return ids, tokens
    raise AssertionError(f"no prompt of {length} tokens has a diverse and clear-cut continuation")


def greedy(model: Path, ids: Sequence[int]) -> tuple[list[int], float]:
    """Greedy tokens, and the least gap between the best logit and the second."""
    tokens, least = list(ids), float("inf")
    for _ in range(NEW_TOKENS):
        logits = reference_logits(model, tokens)[-1]
        second, best = np.partition(logits, -2)[-2:]
        least = min(least, float(best - second))
        tokens.append(int(logits.argmax()))
    return tokens[len(ids) :], least


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_greedy_tokens_equal_transformers(
    family: Path,
    compiled: harness.CompiledModel,
    expected: list[tuple[list[int], list[int]]],
    count: int,
    tmp_path: Path,
) -> None:
    target = harness.devices_json(tmp_path / "devices.json", count)
    options = harness.options(family, target, "f32", use_all=True)
    planned = compiled.bundle(tmp_path / "bundle", load_cluster(target), options)
    assert len(planned.plan.devices) == count
    results = harness.answers(tmp_path / "bundle", [ids for ids, _ in expected], NEW_TOKENS)
    for (ids, tokens), result in zip(expected, results, strict=True):
        assert result["tokens"] == tokens, f"prompt of {len(ids)} tokens on {count} devices"
    assert all(figures["compute_s"] > 0 for figures in results[-1]["devices"].values())
