"""Scalar and vector expressions shared by the kernels: constants, bindings, accurate float32 transcendentals.

Every function works on an expression of any number of lanes. Nothing here needs libm, so a compiled library has
no symbol that a device could lack, and loops over these expressions vectorise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import factorial
from typing import TypeAlias

import tvm
from tvm import tirx

Expr: TypeAlias = tvm.ir.Expr

_LOG2_E = 1.4426950408889634
_LN2_HIGH = 0.693359375  # 9 significant bits: its product with an integer below 2**15 is exact
_LN2_LOW = -2.12194440054690583e-4
_EXP_MAX, _EXP_MIN = 88.72, -87.33


@cache
def intrinsic_id(name: str) -> int:
    """LLVM's number of intrinsic `name`."""
    return int(tvm.target.codegen.llvm_lookup_intrinsic_id(name))


def type_of(x: Expr) -> str:
    return str(x.ty)


def intrinsic(dtype: str, name: str, *operands: Expr) -> Expr:
    """A call of a pure LLVM intrinsic."""
    return tirx.call_llvm_pure_intrin(dtype, tirx.const(intrinsic_id(name), "uint32"), *operands)


def splat(value: float, like: Expr) -> Expr:
    """A constant of the type (and lanes) of `like`."""
    return tirx.const(value, type_of(like))


def vector_type(scalar: str, lanes: int) -> str:
    return scalar if lanes == 1 else f"{scalar}x{lanes}"


def let(value: Expr, body: Callable[[tirx.Var], Expr]) -> Expr:
    """`body` of a variable bound to `value`, so that the value is computed once."""
    variable = tirx.Var("t", type_of(value))
    return tirx.Let(variable, value, body(variable))


def horner(x: Expr, coefficients: tuple[float, ...]) -> Expr:
    """The polynomial with `coefficients`, highest power first."""
    result = splat(coefficients[0], x)
    for coefficient in coefficients[1:]:
        result = result * x + splat(coefficient, x)
    return result


def exp(x: Expr) -> Expr:
    """e**x within 2 ulp for x in [-87.33, 88.72], clamped outside.

    x = k ln 2 + r with |r| <= ln 2 / 2 (ln 2 in two parts, Cody and Waite), then a Taylor polynomial of
    degree 7 in r, whose remainder is below 6e-9.
    """
    integer = "int32" + type_of(x).removeprefix("float32")
    taylor = tuple(1.0 / factorial(i) for i in range(7, -1, -1))

    def scaled(clamped: Expr, k: Expr) -> Expr:
        r = (clamped - k * splat(_LN2_HIGH, x)) - k * splat(_LN2_LOW, x)
        power = (tirx.Cast(integer, k) + tirx.const(127, integer)) << tirx.const(23, integer)
        return let(r, lambda v: horner(v, taylor)) * tirx.reinterpret(type_of(x), power)

    clamped = tirx.max(tirx.min(x, splat(_EXP_MAX, x)), splat(_EXP_MIN, x))
    return let(clamped, lambda c: let(tirx.nearbyint(c * splat(_LOG2_E, x)), lambda k: scaled(c, k)))


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e**-x)."""
    one = splat(1.0, x)
    return one / (one + exp(splat(0.0, x) - x))


# tanh x = x + x**3 P(x**2) for |x| < 0.625: P fitted to float64 tanh at Chebyshev nodes, relative error 3e-9.
_TANH = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)


def tanh(x: Expr) -> Expr:
    """tanh x within a few ulp: a polynomial near 0, where 1 - 2 / (e**2x + 1) would cancel."""

    def both(v: Expr) -> Expr:
        near = let(v * v, lambda z: v + v * z * horner(z, _TANH))
        far = splat(1.0, x) - splat(2.0, x) / (exp(v + v) + splat(1.0, x))
        return tirx.Select(tirx.abs(v) < splat(0.625, x), near, far)

    return let(x, both)
