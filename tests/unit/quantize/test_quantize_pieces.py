"""Weights of pieces: together they have the very values of the whole weight, however they are rounded and cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from llcompile.ir.model import WeightSource
from llcompile.ir.shard import WeightCut
from llcompile.quantize import Calibration, block, unpack, write_block
from llcompile.quantize.reader import cut_shape
from tests.unit.quantize import checkpoint
from tests.unit.quantize.checkpoint import Floats, matrix, store
from tests.unit.quantize.test_quantize_feedback import activations, stored_factors

ROLES = {"q": "linear", "o": "linear", "conv": "linear", "drawn": "linear", "bias": "plain", "norm": "plain"}
# Rows 101 to 119 of the second rank lie apart, as those of a fused projection do; 37 is no multiple of a tile.
ROWS = (((0, 37),), ((37, 101), (120, 150)), ((101, 120),))
COLUMNS = (((0, 96),), ((96, 160),), ((160, 330),))


def sources(folder: Path) -> dict[str, WeightSource]:
    return {
        "q": store(folder / "q.bin", matrix(150, 330, 2), "f16"),
        "o": store(folder / "o.bin", matrix(70, 330, 3)),
        "conv": store(folder / "conv.bin", matrix(64, 330, 4), transpose=True),
        "drawn": WeightSource("drawn", (150, 100), "f32"),
        "bias": store(folder / "bias.bin", matrix(1, 150, 5)[0]),
        "norm": store(folder / "norm.bin", matrix(1, 70, 6)[0]),
    }


def cuts_of(rank: int) -> tuple[WeightCut, ...]:
    by_rows, by_columns = (0, ROWS[rank]), (1, COLUMNS[rank])
    by_name = {"q": by_rows, "o": by_columns, "conv": by_columns, "drawn": by_rows, "bias": by_rows}
    return tuple(
        WeightCut(i, *by_name[name]) if name in by_name else WeightCut(i) for i, name in enumerate(ROLES)
    )


def values(
    path: Path,
    given: dict[str, WeightSource],
    quant: str,
    cuts: tuple[WeightCut, ...] | None,
    **options: object,
) -> dict[str, Floats]:
    """What the kernels see of each weight in the file that is written."""
    made = checkpoint.template(given, ROLES)
    shapes = [source.shape for source in given.values()]
    if cuts:
        shapes = [cut_shape(shapes[cut.weight], cut) for cut in cuts]
    piece = replace(
        made, weights=tuple(replace(w, shape=s) for w, s in zip(made.weights, shapes, strict=True))
    )
    lowered = checkpoint.lower(piece, quant)
    write_block(path, lowered, made, checkpoint.block(given), given, 3, cuts=cuts, **options)  # type: ignore[arg-type]
    found = {}
    with safe_open(path, "np") as file:
        for name, shape in zip(given, shapes, strict=True):
            params = [p for p in lowered.params if p.name.split(".")[0] == name]
            parts = {p.part: file.get_tensor(p.name) for p in params}
            found[name] = unpack(parts, params[0].layout, shape)
    return found


def calibration(folder: Path, given: dict[str, WeightSource]) -> Calibration:
    files = {}
    for index, (name, source) in enumerate(given.items()):
        if ROLES[name] == "linear":
            files[7, index] = folder / f"{index}.npy"
            np.save(files[7, index], stored_factors(activations(400, source.shape[1])))
    return Calibration(files)


@pytest.mark.parametrize(
    ("quant", "calibrated"),
    [("f32", False), ("f16", False), ("q8", False), ("q4", False), ("q4", True), ("q5", True)],
)
def test_pieces_have_the_values_of_the_whole(tmp_path: Path, quant: str, calibrated: bool) -> None:
    given = sources(tmp_path)
    how = {"calibration": calibration(tmp_path, given)} if calibrated else {}
    whole = values(tmp_path / "whole", given, quant, None, **how)
    pieces = [values(tmp_path / f"{rank}", given, quant, cuts_of(rank), **how) for rank in range(3)]
    for name in ("o", "conv"):
        np.testing.assert_array_equal(np.concatenate([piece[name] for piece in pieces], axis=1), whole[name])
    for name in ("q", "drawn", "bias"):
        for rank, piece in enumerate(pieces):
            expected = np.concatenate([whole[name][slice(*r)] for r in ROWS[rank]])
            np.testing.assert_array_equal(piece[name], expected)
    assert all(np.array_equal(piece["norm"], whole["norm"]) for piece in pieces)


def test_a_piece_is_the_same_in_any_bands_and_on_any_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = sources(tmp_path)
    how = {"calibration": calibration(tmp_path, given)}
    told: list[int] = []
    first = values(tmp_path / "one", given, "q4", cuts_of(1), progress=told.append, **how)
    monkeypatch.setattr(block, "BAND_ELEMENTS", 1)
    values(tmp_path / "two", given, "q4", cuts_of(1), jobs=2, **how)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert sum(told) == sum(array.size for array in first.values())


def test_a_slice_holds_its_share_only(tmp_path: Path) -> None:
    given = {name: source for name, source in sources(tmp_path).items() if name == "o"}
    sizes = []
    for columns in ((), ((0, 32),)):
        cut = WeightCut(0, 1, columns) if columns else WeightCut(0)
        made = checkpoint.template(given, ROLES)
        piece = replace(made, weights=(replace(made.weights[0], shape=cut_shape((70, 330), cut)),))
        lowered, placed = checkpoint.lower(piece, "f32"), checkpoint.block(given)
        write_block(tmp_path / "b", lowered, made, placed, given, cuts=(cut,))
        sizes.append((tmp_path / "b").stat().st_size)
    assert sizes == [4096 + 80 * 330 * 4, 4096 + 80 * 32 * 4]
