"""Reading checkpoints by rows, and random weights."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from llcompile.ir.errors import CompileError
from llcompile.ir.model import WeightSource
from llcompile.quantize import read_rows
from llcompile.quantize.synthetic import CHUNK
from tests.unit.quantize.checkpoint import LEADING, matrix, store, stored_bytes


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("rows", [(0, 7), (0, 1), (3, 6), (6, 7)])
def test_rows_of_every_dtype_both_ways_round(
    tmp_path: Path, dtype: str, transpose: bool, rows: tuple[int, int]
) -> None:
    values = matrix(7, 13)
    source = store(tmp_path / "w.bin", values, dtype, transpose)
    if dtype == "bf16":
        stored = np.frombuffer(stored_bytes(values, dtype), "<u2").astype(np.uint32) << 16
        expected = stored.view(np.float32).reshape(values.shape)
    else:
        expected = values.astype({"f32": np.float32, "f16": np.float16}[dtype]).astype(np.float32)
    got = read_rows(source, *rows)
    assert got.dtype == np.float32
    assert np.array_equal(got, expected[slice(*rows)])


@pytest.mark.parametrize("transpose", [False, True])
def test_a_part_of_a_tensor_has_its_rows(tmp_path: Path, transpose: bool) -> None:
    values = matrix(11, 13)
    part = store(tmp_path / "w.bin", values, "f32", transpose).part(2, 9)
    assert (part.shape, part.stored_rows) == ((7, 13), 11)
    assert np.array_equal(read_rows(part, 0, 7), values[2:9])
    assert np.array_equal(read_rows(part.part(1, 6), 2, 4), values[5:7])


def test_a_part_of_a_file_that_is_too_short_names_where_the_tensor_ends(tmp_path: Path) -> None:
    part = store(tmp_path / "w.bin", matrix(11, 13)).part(2, 9)
    os.truncate(tmp_path / "w.bin", LEADING + 8 * 13 * 4)
    with pytest.raises(CompileError, match=f"ends at byte {LEADING + 11 * 13 * 4}, the file at byte"):
        read_rows(part, 0, 7)


def test_vectors(tmp_path: Path) -> None:
    values = matrix(1, 9)[0]
    source = store(tmp_path / "w.bin", values)
    assert np.array_equal(read_rows(source, 2, 9), values[2:])


def random_source(shape: tuple[int, ...], name: str = "w", **changes: object) -> WeightSource:
    return WeightSource(name, shape, "f32", **changes)  # type: ignore[arg-type]


def test_a_part_of_a_random_tensor_is_drawn_as_the_whole() -> None:
    source = random_source((300, 1001))
    assert np.array_equal(read_rows(source.part(37, 205), 3, 9, seed=5), read_rows(source, 40, 46, seed=5))


def test_random_weights_do_not_depend_on_how_many_rows_are_asked_for() -> None:
    source = random_source((300, 1001))  # rows straddle chunks
    assert CHUNK * 4 < 300 * 1001
    whole = read_rows(source, 0, 300, seed=5)
    pieces = [read_rows(source, start, min(300, start + 37), seed=5) for start in range(0, 300, 37)]
    assert np.array_equal(np.concatenate(pieces), whole)
    assert np.array_equal(read_rows(source, 131, 132, seed=5)[0], whole[131])


def test_random_weights_are_normal_and_differ_by_seed_and_name() -> None:
    draw = read_rows(random_source((512, 1024), std=0.02), 0, 512, seed=1)
    assert abs(draw.mean()) < 2e-4
    assert abs(draw.std() / 0.02 - 1) < 0.01
    assert abs((np.abs(draw) < 0.02).mean() - 0.6827) < 0.01
    assert abs((np.abs(draw) > 0.06).mean() - 0.0027) < 0.001
    for other in (
        read_rows(random_source((512, 1024)), 0, 512, seed=2),
        read_rows(random_source((512, 1024), name="v"), 0, 512, seed=1),
    ):
        assert abs(np.corrcoef(draw.ravel(), other.ravel())[0, 1]) < 0.01
    chunks = draw.reshape(-1, CHUNK)
    assert abs(np.corrcoef(chunks[0], chunks[1])[0, 1]) < 0.02


def test_the_first_random_weights_are_these() -> None:
    """Bundles of random weights must be the same from one version and machine to the next."""
    expected = [0.7814208, -0.2521585, -0.1071271, 0.2757233, -2.5878103, 2.5504808, -0.8919472, -0.2051978]
    got = read_rows(random_source((2, 4), std=1.0), 0, 2, seed=1).ravel()
    assert got.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("init", "value"), [("ones", 1.0), ("zeros", 0.0)])
def test_constant_init(init: str, value: float) -> None:
    assert (read_rows(random_source((64,), init=init), 3, 9) == value).all()
