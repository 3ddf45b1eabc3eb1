"""Error feedback: the codes of GPTQ done the plain way, less error where it counts, the same bytes however cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from llcompile.ir.errors import CompileError
from llcompile.ir.packing import Layout
from llcompile.quantize import Calibration, block, pack, unpack, write_block
from llcompile.quantize.calibrate import factors_of
from llcompile.quantize.feedback import SPAN, Factors, quantise_with_feedback
from tests.unit.quantize import checkpoint
from tests.unit.quantize.checkpoint import Floats, matrix, store

Q4 = Layout("tiled", "q4", 16)
Doubles = npt.NDArray[np.float64]


def activations(tokens: int, features: int, seed: int = 0) -> Floats:
    """Correlated rows, features of unequal size."""
    mixed = matrix(tokens, features, seed) @ matrix(features, features, seed + 1) * features**-0.5
    return mixed * np.exp(matrix(1, features, seed + 2))


def stored_factors(rows: Floats) -> Floats:
    """As calibration keeps them in a file: (spans, 129, 128)."""
    return np.stack([factors_of(rows[:, start : start + SPAN]) for start in range(0, rows.shape[1], SPAN)])


def factors(rows: Floats) -> Factors:
    stored = stored_factors(rows)
    return Factors(stored[:, :SPAN], stored[:, SPAN])


def rounded(values: Floats, given: Factors | None) -> Floats:
    return unpack(pack(values, Q4, "w", given), Q4, values.shape)


# --- GPTQ, the plain way: arXiv 2210.17323, algorithm 1, a row at a time, in float64 ---


def least_error(weights: Doubles, importance: Doubles) -> float:
    """The least weighted squared error of the five scales' codes, each with the best scale for them."""
    largest, found = weights[np.abs(weights).argmax()], []
    for end in (8.0, 7.0, 7.5, 8.5, 9.0):
        codes = np.clip(np.rint(weights / (largest / -end)), -8, 7)
        scale = (importance * weights * codes).sum() / (importance * codes * codes).sum()
        found.append(float((importance * (weights - scale * codes) ** 2).sum()))
    return min(found)


def plain_gptq(values: Floats, moments: Doubles, scales: Floats) -> tuple[Doubles, list[float]]:
    """Codes of `values` (rows, K) for `scales` (rows, K / 32), a span of 128 columns at a time, errors carried from
    half group to half group on a grid; and how many times `least_error` each scale's is, on the weights as they are
    when it is chosen."""
    codes, ratios = np.zeros(values.shape), []
    for start in range(0, values.shape[1], SPAN):
        part = slice(start, start + SPAN)
        spread = np.linalg.cholesky(np.linalg.inv(moments[part, part])).T
        for row, given in enumerate(values[:, part].astype(np.float64)):
            weights, errors = given.copy(), np.zeros(len(given))
            for j in range(len(weights)):
                scale = scales[row, (start + j) // 32]
                if j % 32 == 0:
                    group, important = weights[j : j + 32], np.diagonal(moments)[start + j : start + j + 32]
                    nearest = scale * np.clip(np.rint(group / scale), -8, 7)
                    found = float((important * (group - nearest) ** 2).sum())
                    ratios.append(found / least_error(group, important))
                codes[row, start + j] = np.clip(np.rint(weights[j] / scale), -8, 7)
                errors[j] = weights[j] - scale * codes[row, start + j]
                behind = (j // 16 + 1) * 16  # within a half group at once, to what is behind it together
                weights[j:behind] -= errors[j] * spread[j, j:behind] / spread[j, j]
                if j + 1 == behind:
                    half = slice(behind - 16, behind)
                    shares = spread[half, behind:] / np.diagonal(spread)[half, None]
                    weights[behind:] -= on_grid(errors[half], 11) @ on_grid(shares.astype(np.float32), 9)
    return codes, ratios


def on_grid(values: Doubles | Floats, bits: int) -> Doubles:
    """Multiples of a power of two of which the largest of a column has 2 ** bits at most: their sums are exact."""
    if not values.size:
        return values.astype(np.float64)
    step = 2.0 ** (np.frexp(np.abs(values).max(axis=0))[1] - bits)
    return np.rint(values / step) * step


def damped(rows: Floats) -> Doubles:
    """Second moments with a fifth of each, and a hundredth of each span's mean, added to the diagonal."""
    wide = rows.astype(np.float64)
    moments = wide.T @ wide
    for start in range(0, rows.shape[1], SPAN):
        span = np.arange(start, min(start + SPAN, rows.shape[1]))
        own = np.diagonal(moments)[span]
        moments[span, span] = 1.2 * own + 0.01 * own.mean()
    return moments


@pytest.mark.parametrize("shape", [(24, 128), (5, 96), (40, 320)])
def test_codes_are_those_of_gptq_done_the_plain_way(shape: tuple[int, int]) -> None:
    values, rows = matrix(*shape, seed=5), activations(700, shape[1])
    codes, scales = quantise_with_feedback(values, factors(rows), 4)
    by_row = codes.reshape(32, shape[0], -1).transpose(1, 2, 0).reshape(shape)
    chosen = scales.astype(np.float32).reshape(shape[0], -1)
    expected, ratios = plain_gptq(values, damped(rows), chosen)
    assert np.array_equal(by_row, expected)
    # A candidate may put a weight halfway between two codes, where the last bit decides: rarely a little worse.
    assert np.mean(ratios) < 1.001
    assert max(ratios) < 1.1


# --- what it is for ---


@pytest.mark.parametrize("columns", [128, 200, 512])
def test_the_output_s_error_falls(columns: int) -> None:
    """The squared error of x Wᵀ, tr(E H Eᵀ), on inputs other than those calibrated on."""
    both = activations(3000, columns)
    values, seen, unseen = matrix(64, columns, 9), both[:2000], both[2000:]
    plain = np.square(unseen @ (rounded(values, None) - values).T).sum()
    fed = np.square(unseen @ (rounded(values, factors(seen)) - values).T).sum()
    assert fed < 0.75 * plain


@pytest.mark.parametrize("shape", [(16, 32), (37, 45), (1, 1), (130, 2080), (64, 300)])
def test_without_correlations_it_is_plain_rounding(shape: tuple[int, int]) -> None:
    values = matrix(*shape, seed=3)
    spans = -(-shape[1] // SPAN)
    given = Factors(
        np.tile(np.eye(SPAN, dtype=np.float32), (spans, 1, 1)), np.ones((spans, SPAN), np.float32)
    )
    plain, fed = pack(values, Q4, "w"), pack(values, Q4, "w", given)
    assert all(np.array_equal(plain[part], fed[part]) for part in plain)


# --- edges ---


@pytest.mark.parametrize("columns", [1, 33, 45, 100, 129, 161])
def test_columns_that_fill_up_a_group_keep_code_0(columns: int) -> None:
    values = matrix(16, columns, 1)
    parts = pack(values, Q4, "w", factors(activations(400, columns)))
    wide = -(-columns // 32) * 32
    got = unpack(parts, Q4, (16, wide))
    assert not got[:, columns:].any()
    assert np.abs(got[:, :columns] - values).max() < 1.5


def test_features_that_are_never_active_are_rounded_by_themselves() -> None:
    values, rows = matrix(32, 256, 2), activations(500, 256)
    rows[:, [3, 40, 41]] = 0
    rows[:, 128:] = 0  # a whole span
    got = rounded(values, factors(rows))
    assert np.isfinite(got).all()
    assert np.array_equal(got[:, 128:], rounded(values, None)[:, 128:])
    assert np.abs(got - values)[:, [3, 40, 41]].max() < 0.5


def test_zero_weights() -> None:
    assert not rounded(np.zeros((20, 160), np.float32), factors(activations(300, 160))).any()


@pytest.mark.parametrize("size", [1e-20, 1e15])
def test_the_size_of_activations_does_not_matter(size: float) -> None:
    values, rows = matrix(16, 128), activations(300, 128)
    assert np.array_equal(rounded(values, factors(rows)), rounded(values, factors(rows * np.float32(size))))


@pytest.mark.parametrize(("value", "code"), [(np.nan, "Q104"), (np.inf, "Q104"), (9e6, "Q105")])
def test_weights_that_cannot_be_held_are_refused(value: float, code: str) -> None:
    values = matrix(80, 256)
    values[70, 200] = value
    with pytest.raises(CompileError) as caught:
        pack(values, Q4, "w", factors(activations(300, 256)))
    assert caught.value.code == code


# --- the same bytes however cut ---


def test_a_row_is_rounded_the_same_wherever_it_stands() -> None:
    """Though a BLAS library may sum in an order that depends on that."""
    values, given = matrix(200, 256), factors(activations(400, 256))
    whole = rounded(values, given)
    for start in range(1, 70, 7):
        assert np.array_equal(rounded(values[start : start + 90], given), whole[start : start + 90])


def test_a_row_depends_on_no_other() -> None:
    values, given = matrix(300, 320, 7), factors(activations(500, 320))
    codes, scales = quantise_with_feedback(values, given, 4)
    by_row = codes.reshape(32, 300, -1), scales.reshape(300, -1)
    for row in (0, 63, 64, 299):
        one = quantise_with_feedback(values[row : row + 1], given, 4)
        assert np.array_equal(one[0], by_row[0][:, row])
        assert np.array_equal(one[1], by_row[1][row])


def test_bytes_depend_neither_on_bands_nor_on_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = {
        "q": store(tmp_path / "q.bin", matrix(150, 330, 2), "f16"),
        "conv": store(tmp_path / "conv.bin", matrix(37, 90, 4), transpose=True),
    }
    roles = {"q": "linear", "conv": "linear"}
    files = {}
    for index, source in enumerate(sources.values()):
        files[7, index] = tmp_path / f"{index}.npy"
        np.save(files[7, index], stored_factors(activations(400, source.shape[1])))
    made, placed = checkpoint.template(sources, roles), checkpoint.block(sources)
    lowered = checkpoint.lower(made, "q4")

    def write(jobs: int, calibration: Calibration | None) -> object:
        return write_block(tmp_path / "b", lowered, made, placed, sources, jobs=jobs, calibration=calibration)

    plain, first = write(1, None), write(1, Calibration(files))
    assert first != plain
    assert write(2, Calibration(files)) == first
    monkeypatch.setattr(block, "BAND_ELEMENTS", 1)
    assert write(1, Calibration(files)) == first
    assert write(3, Calibration(files)) == first
    assert write(1, Calibration({})) == plain
