"""Rows of GGUF's blocks: every type, any range, in the order of the graph."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest

from llcompile.gguf import BLOCKS, row_bytes
from llcompile.ir.errors import CompileError
from llcompile.ir.model import WeightSource
from llcompile.quantize import read_rows, write_block
from llcompile.quantize.block import BAND_ELEMENTS
from tests.gguf_models import dequantised, random_blocks, rows_as_pairs, stored
from tests.unit.quantize.checkpoint import block, lower, matrix, template

ROWS, COLUMNS, HEADS, LEADING = 48, 512, 3, 24
RANGES = ((0, 48), (0, 1), (47, 48), (5, 17), (16, 32), (15, 33))


def values(kind: str) -> np.ndarray:
    """Bytes of a matrix, uint8 (ROWS, row_bytes)."""
    matrix = np.random.default_rng(1).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    return stored(matrix, kind, seed=2)


def source(path: Path, raw: np.ndarray, kind: str, pairs: int = 0, added: float = 0.0) -> WeightSource:
    path.write_bytes(b"x" * LEADING + raw.tobytes() + b"y" * 8)
    return WeightSource("w", (ROWS, COLUMNS), kind, str(path), LEADING, pairs=pairs, added=added)


def test_the_types_are_all_that_the_package_makes_numbers_of() -> None:
    found = set()
    for kind in gguf.GGMLQuantizationType:
        try:
            dequantised(np.zeros((1, 4096), np.uint8), kind.name)
        except NotImplementedError:
            continue
        except ValueError:  # 4096 bytes are no whole number of its blocks
            pass
        found.add(kind.name)
    assert found - {"F32", "F16", "BF16"} == set(BLOCKS)


@pytest.mark.parametrize("kind", BLOCKS)
def test_any_range_of_rows_is_that_of_the_whole(kind: str, tmp_path: Path) -> None:
    raw = values(kind)
    assert raw.shape == (ROWS, row_bytes(kind, COLUMNS))
    whole = dequantised(raw, kind)
    assert 0.3 < whole.std() < 3
    found = source(tmp_path / "w.bin", raw, kind)
    for start, stop in RANGES:
        np.testing.assert_array_equal(read_rows(found, start, stop), whole[start:stop])
    np.testing.assert_array_equal(read_rows(found.part(7, 40), 2, 30), whole[9:37])


@pytest.mark.parametrize("kind", ["Q4_K", "Q8_0", "f32"])
def test_rows_by_pairs_come_by_halves(kind: str, tmp_path: Path) -> None:
    matrix = np.random.default_rng(4).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    if kind == "f32":
        raw, whole = rows_as_pairs(matrix, HEADS).view(np.uint8), matrix
    else:
        blocks = stored(matrix, kind, seed=5)
        raw, whole = rows_as_pairs(blocks, HEADS), dequantised(blocks, kind)
    found = source(tmp_path / "w.bin", raw, kind, pairs=HEADS)
    for start, stop in RANGES:
        np.testing.assert_array_equal(read_rows(found, start, stop), whole[start:stop])


def test_what_was_added_is_taken_off(tmp_path: Path) -> None:
    raw = values("Q8_0")
    found = source(tmp_path / "w.bin", raw, "Q8_0", added=1.0)
    np.testing.assert_array_equal(read_rows(found, 3, 9), dequantised(raw, "Q8_0")[3:9] - 1)


def test_blocks_of_a_vector_run_along_it(tmp_path: Path) -> None:
    raw = random_blocks("Q4_K", 1, 1024, 1.0, seed=6)
    path = tmp_path / "v.bin"
    path.write_bytes(raw.tobytes())
    found = WeightSource("v", (1024,), "Q4_K", str(path))
    np.testing.assert_array_equal(read_rows(found, 100, 700), dequantised(raw, "Q4_K")[0, 100:700])


def test_a_file_that_ends_within_blocks_is_refused(tmp_path: Path) -> None:
    raw = values("Q6_K")
    found = source(tmp_path / "w.bin", raw, "Q6_K")
    cut = LEADING + raw.nbytes - 5
    (tmp_path / "w.bin").write_bytes((tmp_path / "w.bin").read_bytes()[:cut])
    with pytest.raises(
        CompileError, match=f"ends at byte {LEADING + raw.nbytes}, the file at byte {cut}"
    ) as caught:
        read_rows(found, 40, 48)
    assert caught.value.code == "Q101"


def test_scales_that_are_no_numbers_make_none(tmp_path: Path) -> None:
    raw = values("Q8_0")
    raw[0, :2] = np.array([np.inf], "<f2").view(np.uint8)
    assert not np.isfinite(read_rows(source(tmp_path / "w.bin", raw, "Q8_0"), 0, 1)).all()


@pytest.mark.parametrize("kind", ["Q4_K", "IQ3_S", "Q8_0"])
def test_packing_a_matrix_takes_memory_for_a_band_of_it(kind: str, tmp_path: Path) -> None:
    """As of safetensors: every intermediate of a band together stays below 24 bytes a weight (block.BAND_ELEMENTS)."""
    rows, columns = 8 * BAND_ELEMENTS // 1024, 1024
    one = (
        random_blocks(kind, 64, columns, 1.0, seed=8)
        if kind != "Q8_0"
        else stored(matrix(64, columns), kind, 8)
    )
    path = tmp_path / "large.bin"
    path.write_bytes(one.tobytes() * (rows // 64))
    sources = {"w": WeightSource("w", (rows, columns), kind, str(path))}
    made = template(sources, {"w": "linear"})
    lowered = lower(made, "q8")
    tracemalloc.start()
    write_block(tmp_path / "w.safetensors", lowered, made, block(sources), sources)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 24 * BAND_ELEMENTS
    assert most < rows * columns * 4  # what it takes whole, in float32
