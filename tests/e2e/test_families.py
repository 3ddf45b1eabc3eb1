"""Every family over one to four devices: greedy tokens equal transformers'."""

from __future__ import annotations

from pathlib import Path

import pytest

from llcompile.cluster import load_cluster
from tests.e2e import harness
from tests.models import FAMILIES, clear_cut, save

PROMPTS = (1, 7, 61, 200)
NEW_TOKENS = 24


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(request.param, tmp_path_factory.mktemp(request.param) / request.param)


@pytest.fixture(scope="module")
def compiled(family: Path) -> harness.CompiledModel:
    return harness.compile_model(family, family.parent / "compiled")


@pytest.fixture(scope="module")
def expected(family: Path) -> list[tuple[list[int], list[int]]]:
    """Prompts and their greedy continuations by transformers, which are diverse and clear-cut."""
    return [clear_cut(family, length, NEW_TOKENS) for length in PROMPTS]


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
