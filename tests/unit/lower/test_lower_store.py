"""Libraries that are kept for the next build: found again, never mixed up, never trusted."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from llcompile.lower import store
from llcompile.lower.store import key_of, stored
from llrun.schema import Precision, Shapes
from tests.unit.lower.harness import PROCESSORS, llama_mlp

MLP = llama_mlp(32, 64)
KINDS = Precision.of("q4", "f16"), Shapes(64, 16), PROCESSORS["neon"]
KEY = key_of([MLP], *KINDS)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where libraries are kept."""
    monkeypatch.setenv("LLC_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


class Maker:
    """Stands for the compiler."""

    def __init__(self, data: bytes = b"library") -> None:
        self.data, self.times = data, 0

    def __call__(self, out: Path) -> None:
        self.times += 1
        out.write_bytes(self.data)


def test_what_was_made_once_is_found(kept: Path, tmp_path: Path) -> None:
    maker = Maker()
    assert not stored(KEY, tmp_path / "a.so", maker)
    assert stored(KEY, tmp_path / "b.so", maker)
    assert maker.times == 1
    assert (tmp_path / "b.so").read_bytes() == b"library"
    assert kept.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "other",
    [
        key_of([replace(MLP, id="t9")], *KINDS),
        key_of([replace(MLP, onnx=MLP.onnx + b" ")], *KINDS),
        key_of([MLP, MLP], *KINDS),
        key_of([MLP], Precision.of("q8", "f16"), *KINDS[1:]),
        key_of([MLP], KINDS[0], Shapes(64, 8), KINDS[2]),
        key_of([MLP], *KINDS[:2], PROCESSORS["avx2"]),
    ],
)
def test_another_library_has_another_key(other: str) -> None:
    assert other != KEY


def test_another_compiler_has_other_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_compiler", lambda: "another")
    assert key_of([MLP], *KINDS) != KEY


def test_a_damaged_file_is_made_anew(kept: Path, tmp_path: Path) -> None:
    maker = Maker()
    stored(KEY, tmp_path / "a.so", maker)
    (file,) = kept.glob("*.so")
    file.write_bytes(b"something else")
    assert not stored(KEY, tmp_path / "b.so", maker)
    assert (tmp_path / "b.so").read_bytes() == b"library"
    assert stored(KEY, tmp_path / "c.so", maker)


def test_off_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLC_CACHE", "off")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    maker = Maker()
    assert [stored(KEY, tmp_path / "a.so", maker) for _ in range(2)] == [False, False]
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_others_can_write_to_is_not_used(kept: Path, tmp_path: Path) -> None:
    kept.mkdir()
    kept.chmod(0o777)
    assert [stored(KEY, tmp_path / "a.so", Maker()) for _ in range(2)] == [False, False]
    assert list(kept.iterdir()) == []


def test_what_was_not_used_for_the_longest_makes_room(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "LIMIT_BYTES", 20)
    for number, key in enumerate("abc"):
        if number == 2:
            assert stored("a", tmp_path / "out.so", Maker())  # used again, so b is the oldest
        stored(key, tmp_path / "out.so", Maker())
        for file in kept.glob(f"{key}-*.so"):
            os.utime(file, (number, number))
    assert sorted(file.name[0] for file in kept.glob("*.so")) == ["a", "c"]
