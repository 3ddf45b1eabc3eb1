"""Weights that cannot be packed: one clear error, nothing left behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llcompile.ir.errors import CompileError
from llcompile.ir.model import WeightSource
from llcompile.ir.packing import Layout
from llcompile.quantize import block, dequantised, write_block
from tests.unit.quantize import checkpoint
from tests.unit.quantize.checkpoint import matrix, store


def fails(
    path: Path, source: WeightSource, quant: str = "q4", role: str = "linear", jobs: int = 1
) -> CompileError:
    """The error that packing `source` ends in; checks that no file is left."""
    sources = {"w": source}
    made = checkpoint.template({"w": replace(source, shape=(32, 64))}, {"w": role})
    path.mkdir()
    with pytest.raises(CompileError) as caught:
        write_block(
            path / "b", checkpoint.lower(made, quant), made, checkpoint.block(sources), sources, jobs=jobs
        )
    assert list(path.iterdir()) == []
    return caught.value


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("transpose", [False, True])
def test_a_truncated_file_names_itself_and_the_tensor(tmp_path: Path, jobs: int, transpose: bool) -> None:
    source = store(tmp_path / "model-00001.safetensors", matrix(32, 64), "bf16", transpose)
    assert source.path
    Path(source.path).write_bytes(Path(source.path).read_bytes()[:-1000])
    error = fails(tmp_path / "out", source, jobs=jobs)
    assert (error.code, error.exit_code) == ("Q101", 2)
    assert "model-00001.safetensors" in error.message
    assert "byte 4120" in error.message  # 24 + 32 * 64 * 2
    assert "byte 3128" in error.message


def test_a_missing_file(tmp_path: Path) -> None:
    source = replace(store(tmp_path / "w.bin", matrix(32, 64)), path=str(tmp_path / "gone.safetensors"))
    error = fails(tmp_path / "out", source)
    assert error.code == "Q102"
    assert "gone.safetensors: No such file" in error.message


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    source = replace(store(tmp_path / "w.bin", matrix(32, 64)), path=str(tmp_path))
    assert fails(tmp_path / "out", source).code == "Q102"


def test_an_unknown_dtype(tmp_path: Path) -> None:
    source = replace(store(tmp_path / "w.bin", matrix(32, 64)), dtype="f8")
    error = fails(tmp_path / "out", source)
    assert error.code == "Q103"
    assert "f8" in error.message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("quant", "role"), [
    ("q4", "linear"), ("q8", "linear"), ("f16", "linear"), ("f32", "linear"),
    ("q8", "embedding"), ("f32", "plain"),
])  # fmt: skip
def test_weights_that_are_not_finite(tmp_path: Path, value: float, quant: str, role: str) -> None:
    values = matrix(32, 64)
    values[17, 40] = value
    error = fails(tmp_path / "out", store(tmp_path / "w.bin", values), quant, role)
    assert error.code == "Q104"
    assert "tensor w holds weights that are not finite (1 of" in error.message


@pytest.mark.parametrize(("quant", "value", "fits"), [
    ("f16", 65504.0, True), ("f16", -70000.0, False), ("q8", 8e6, True), ("q8", 9e6, False),
    ("q4", -5e5, True), ("q4", 6.5e5, False), ("f32", 3e38, True),
])  # fmt: skip
def test_weights_too_large_for_the_format(tmp_path: Path, quant: str, value: float, fits: bool) -> None:
    values = matrix(32, 64)
    values[3, 3] = value
    source = store(tmp_path / "w.bin", values)
    if fits:
        got = dequantised(source, Layout("tiled", quant, 16))
        assert abs(got[3, 3] / value - 1) < 0.07
        return
    error = fails(tmp_path / "out", source, quant)
    assert error.code == "Q105"
    assert f"{abs(value):g}" in error.message
    assert "--quant f32" in error.message


def test_a_shape_that_is_not_the_template_s(tmp_path: Path) -> None:
    error = fails(tmp_path / "out", store(tmp_path / "w.bin", matrix(32, 65)))
    assert error.code == "Q107"
    assert "(32, 65)" in error.message
    assert "(32, 64)" in error.message


def test_a_weight_that_the_checkpoint_lacks(tmp_path: Path) -> None:
    sources = {"w": store(tmp_path / "w.bin", matrix(32, 64))}
    made = checkpoint.template(sources, {"w": "linear"})
    with pytest.raises(CompileError, match="needs the tensor w, which the checkpoint lacks") as caught:
        write_block(tmp_path / "b", checkpoint.lower(made, "q4"), made, checkpoint.block(sources), {})
    assert caught.value.code == "Q107"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    sources = {"w": store(tmp_path / "w.bin", matrix(32, 64))}
    made = checkpoint.template(sources, {"w": "linear"})
    with pytest.raises(CompileError, match="cannot write") as caught:
        write_block(
            tmp_path / "no" / "b", checkpoint.lower(made, "q4"), made, checkpoint.block(sources), sources
        )
    assert (caught.value.code, caught.value.exit_code) == ("Q106", 2)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk(tmp_path: Path) -> None:
    sources = {"w": store(tmp_path / "w.bin", matrix(32, 64))}
    made = checkpoint.template(sources, {"w": "linear"})
    (tmp_path / "b.partial").symlink_to("/dev/full")
    with pytest.raises(CompileError, match=r"No space left on device\. Free some space") as caught:
        write_block(tmp_path / "b", checkpoint.lower(made, "q4"), made, checkpoint.block(sources), sources)
    assert (caught.value.code, caught.value.exit_code) == ("Q106", 1)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    monkeypatch.setattr(block, "BAND_ELEMENTS", 1)
    sources = {"w": WeightSource("w", (512, 64), "f32")}
    made = checkpoint.template(sources, {"w": "linear"})

    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_block(
            tmp_path / "b",
            checkpoint.lower(made, "q4"),
            made,
            checkpoint.block(sources),
            sources,
            0,
            interrupt,
            jobs,
        )
    assert list(tmp_path.iterdir()) == []
