"""Bundles of another version are refused by name, whichever program reads them; so are values no version knows."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from llrun import schema

OLD = Path(__file__).parents[1] / "fixtures/schema-1"
SAID = f"it has schema 1, this version reads schema {schema.SCHEMA}: build the bundle again"


@pytest.mark.parametrize(
    "command",
    [
        ("llrun", "{old}", "--prompt-ids", "1,2"),
        ("llrun", "{old}/devices/laptop", "--prompt-ids", "1,2"),
        ("llrun", "bench", "{old}", "--local"),
        ("llcompile", "verify", "{old}"),
        ("llcompile", "explain", "{old}"),
    ],
    ids=["run", "a slice", "bench", "verify", "explain"],
)
def test_a_bundle_of_schema_1_is_refused_by_name(command: tuple[str, ...], tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(OLD, old)
    arguments = [part.format(old=old) for part in command[1:]]
    result = subprocess.run(
        [sys.executable, "-m", command[0], *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    assert SAID in result.stderr
    assert "damaged" not in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("version", ["0", "2", '"2"', "null", "2.5", "9" * 30])
def test_any_other_version_is_refused(version: str) -> None:
    text = (OLD / "manifest.json").read_bytes().replace(b'"schema": 1', f'"schema": {version}'.encode())
    with pytest.raises(ValueError, match=r"schema|Expected `int`|out of range"):
        schema.decode(text, schema.Manifest)


def test_values_that_no_version_knows_are_refused() -> None:
    known = {"weights": "q4", "cache": "f16", "wire": "f32"}
    for key, value in (("weights", "q3"), ("cache", "q4"), ("wire", "f64")):
        with pytest.raises(msgspec.ValidationError, match=value):
            msgspec.convert({**known, key: value}, schema.Precision)
    with pytest.raises(ValueError, match="q3"):
        schema.Precision.of("q3", "f16")
    with pytest.raises(msgspec.ValidationError, match="avx9"):
        msgspec.convert("avx9", schema.Isa)


@pytest.mark.parametrize(("context", "chunk"), [(64, 65), (0, 0), (64, 0), (-1, -1)])
def test_a_chunk_is_no_longer_than_the_context(context: int, chunk: int) -> None:
    with pytest.raises(msgspec.ValidationError, match=f"chunk of {chunk} tokens and a context of {context}"):
        msgspec.convert({"context": context, "chunk": chunk}, schema.Shapes)


def test_float_weights_keep_a_float_cache() -> None:
    assert schema.Precision.of("f32", "q8").cache == schema.CacheFormat.F32
    assert schema.Precision.of("q4", "q8").cache == schema.CacheFormat.Q8
