"""Transcendentals of the kernels against float64: every lane of a loop that uses them."""

from __future__ import annotations

from collections.abc import Callable
from math import erf

import numpy as np
import pytest
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as B

from llcompile.lower.kernels import vector
from tests.unit.lower.harness import Kernel, runnable


def _apply(function: Callable[..., object], x: np.ndarray, isa: str) -> np.ndarray:
    with IRBuilder() as builder, B.prim_func(s_tir=True):
        B.func_attr({"tirx.noalias": True})
        source = B.arg("x", B.buffer((len(x),), "float32"))
        out = B.arg("out", B.buffer((len(x),), "float32"))
        with B.serial(len(x)) as i:
            B.buffer_store(out, function(source[i]), [i])
    result = np.zeros_like(x)
    Kernel(builder.get(), isa)(x, result)
    return result


def _units(got: np.ndarray, exact: np.ndarray) -> float:
    """Largest error in units of the last place of the float32 result."""
    return float((np.abs(got - exact) / np.spacing(np.abs(exact).astype(np.float32))).max())


CASES = {
    "exp": (vector.exp, np.exp, (-87.0, 88.3), 2.0),
    "sigmoid": (vector.sigmoid, lambda x: 1 / (1 + np.exp(-x)), (-80.0, 80.0), 4.0),
    "tanh": (vector.tanh, np.tanh, (-12.0, 12.0), 4.0),
    "erf": (vector.erf, np.vectorize(erf), (-6.0, 6.0), 4.0),
}


@pytest.mark.parametrize("isa", runnable())
@pytest.mark.parametrize("name", CASES)
def test_relative_accuracy(name: str, isa: str) -> None:
    function, reference, (low, high), units = CASES[name]
    x = np.concatenate([np.linspace(low, high, 20011), np.geomspace(1e-30, 1, 500)]).astype(np.float32)
    got, exact = _apply(function, x, isa), reference(x.astype(np.float64))
    assert _units(got, exact) <= units


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_angles_far_from_zero(name: str) -> None:
    x = np.linspace(-2e6, 2e6, 40013).astype(np.float32)
    got = _apply(getattr(vector, name), x, runnable()[0])
    assert np.abs(got - getattr(np, name)(x.astype(np.float64))).max() < 4e-8


def test_exp_stays_finite_and_positive_out_of_range() -> None:
    got = _apply(vector.exp, np.array([-1e30, -200, 200, 1e30], np.float32), runnable()[0])
    assert np.isfinite(got).all()
    assert (got[:2] < 1.3e-38).all()
    assert (got[2:] > 2e38).all()
