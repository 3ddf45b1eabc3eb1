"""Fixtures of the tests of errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.bundle import small_bundle


@pytest.fixture(scope="session")
def made_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle; copy it before changing it."""
    return small_bundle.build(tmp_path_factory.mktemp("made") / "bundle")
