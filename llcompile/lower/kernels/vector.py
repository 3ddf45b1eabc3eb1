"""Scalar and vector expressions shared by the kernels: constants, bindings, accurate float32 transcendentals.

Every function works on an expression of any number of lanes (sin and cos: of one). Nothing here needs libm, so a
compiled library has no symbol that a device could lack, and loops over these expressions vectorise.

A kernel says itself which products are rounded before they are added to something and which are not. The compiler
writes `a * b + c`, so spelt, as one fused operation everywhere; of all other products that meet a sum (one that is
subtracted, or that has a name) it would decide for itself, here so and there so. Therefore: `add` and `subtract` of
what may be a product, `rounded` of one that is named and then added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import factorial, pi
from typing import TypeAlias

import tvm
from tvm import tirx
from tvm.script.ir_builder import tirx as B

Expr: TypeAlias = tvm.ir.Expr
Extent: TypeAlias = int | tirx.Var  # the number of new tokens: 1, or a variable of the kernel

_LOG2_E = 1.4426950408889634
_LN2_HIGH = 0.693359375  # 9 significant bits: its product with an integer below 2**15 is exact
_LN2_LOW = -2.12194440054690583e-4
_EXP_MAX, _EXP_MIN = 88.37, -87.33  # beyond, 2**k is no float32


def local(shape: Sequence[int], dtype: str = "float32") -> tirx.Buffer:
    """A buffer of the kernel's own: on its stack, and in registers where every index is known.

    What is allocated otherwise comes from the runtime's pool by a call for each time the statement is reached, and is
    written back after every change, because the compiler can't know who else sees it.
    """
    own = {"disable_lower_builtin": True}  # lasts if no pass rewrites storage: see library.PASSES
    return B.alloc_buffer(tuple(shape), dtype, scope="local", annotations=own)


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


def run(start: Expr | int, lanes: int) -> Expr | int:
    """The indices start..start + lanes - 1 of one vector access."""
    return start if lanes == 1 else tirx.Ramp(start, 1, lanes)


def same(value: Expr, lanes: int) -> Expr:
    """`value` in every lane."""
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def let(value: Expr, body: Callable[[tirx.Var], Expr]) -> Expr:
    """`body` of a variable bound to `value`, so that the value is computed once."""
    variable = tirx.Var("t", type_of(value))
    return tirx.Let(variable, value, body(variable))


def rounded(x: Expr) -> Expr:
    """x as it is: a product that is rounded before it is added to anything."""
    return intrinsic(type_of(x), "llvm.arithmetic.fence", x)


def is_product(x: Expr) -> bool:
    """Whether the last thing done for a float x, but for its sign, is to multiply."""
    while isinstance(x, tirx.Let):
        x = x.body
    if not isinstance(x, tirx.Mul) or not type_of(x).startswith("float"):
        return False
    size = _without_sign(x)
    return size is None or is_product(size)


def add(a: Expr, b: Expr) -> Expr:
    """a + b; if one of them is a product, rounded once."""
    if is_product(b):
        return _fused(b, a)
    return _fused(a, b) if is_product(a) else a + b


def subtract(a: Expr, b: Expr) -> Expr:
    """a - b; if one of them is a product, rounded once."""
    if is_product(b):
        return _fused(b, a, -1.0)
    return _fused(a, negative(b)) if is_product(a) else a - b


def negative(x: Expr) -> Expr:
    return splat(-1.0, x) * x


def _fused(product: Expr, other: Expr, sign: float = 1.0) -> Expr:
    """sign * product + other, rounded once."""
    if isinstance(product, tirx.Let):
        return tirx.Let(product.var, product.value, _fused(product.body, other, sign))
    size = _without_sign(product)
    if size is not None:  # fma(size, -1, other) the compiler would make other - size, where size is a product
        return _fused(size, other, -sign)
    factor = product.b if sign == 1.0 else splat(sign, product) * product.b
    return intrinsic(type_of(product), "llvm.fma", product.a, factor, other)


def _without_sign(product: tirx.Mul) -> Expr | None:
    """x of the product x * -1; None of any other product."""
    for one, rest in ((product.a, product.b), (product.b, product.a)):
        value = one.value if isinstance(one, tirx.Broadcast) else one
        if isinstance(value, tirx.FloatImm) and float(value.value) == -1.0:
            return rest
    return None


def horner(x: Expr, coefficients: tuple[float, ...]) -> Expr:
    """The polynomial with `coefficients`, highest power first."""
    result = splat(coefficients[0], x)
    for coefficient in coefficients[1:]:
        result = result * x + splat(coefficient, x)
    return result


def exp(x: Expr) -> Expr:
    """e**x within 2 ulp for x in [-87.33, 88.37], clamped outside.

    x = k ln 2 + r with |r| <= ln 2 / 2 (ln 2 in two parts, Cody and Waite), then a Taylor polynomial of
    degree 7 in r, whose remainder is below 6e-9. That is at least 1 for the smallest k, so adding k to its exponent
    multiplies it by 2**k.
    """
    integer = "int32" + type_of(x).removeprefix("float32")
    taylor = tuple(1.0 / factorial(i) for i in range(7, -1, -1))

    def scaled(clamped: Expr, k: Expr) -> Expr:
        r = clamped + k * splat(-_LN2_HIGH, x) + k * splat(-_LN2_LOW, x)
        value = tirx.reinterpret(integer, let(r, lambda v: horner(v, taylor)))
        return tirx.reinterpret(type_of(x), value + (tirx.Cast(integer, k) << tirx.const(23, integer)))

    clamped = tirx.max(tirx.min(x, splat(_EXP_MAX, x)), splat(_EXP_MIN, x))
    return let(clamped, lambda c: let(tirx.nearbyint(c * splat(_LOG2_E, x)), lambda k: scaled(c, k)))


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e**-x)."""
    one = splat(1.0, x)
    return one / (one + exp(negative(x)))


# tanh x = x + x³ P(x²) for |x| < 0.625; erf x = x P(x²) for |x| < 1; erfc x = e**-x² P(1 / (1 + x/2)) for x in
# [1, 4.2]. Each P interpolates the function, computed in float64, at Chebyshev nodes; in exact arithmetic it is
# within 5e-9 of it, relative to tanh and erf.
TANH = (-0.00610434217, 0.0210031103, -0.0538523421, 0.133327812, -0.333333284)
_ERF = (7.88249381e-5, -8.01885384e-4, 5.18931169e-3, -0.0268543288, 0.112835974, -0.37612626, 1.12837911)
_ERFC = (-0.0579633638, -0.0437671803, 0.386657745, 0.112748452, 0.326571733, 0.274455458, 5.3875061e-4)
_ERF_ONE = 4.2  # from here on erf x rounds to 1


def tanh(x: Expr) -> Expr:
    """tanh x within a few ulp: a polynomial near 0, where 1 - 2 / (e**2x + 1) would cancel."""

    def both(v: Expr) -> Expr:
        near = let(v * v, lambda z: v + v * z * horner(z, TANH))
        far = splat(1.0, x) - splat(2.0, x) / (exp(splat(2.0, x) * v) + splat(1.0, x))
        return tirx.Select(tirx.abs(v) < splat(0.625, x), near, far)

    return let(x, both)


def erf(x: Expr) -> Expr:
    """The error function within a few ulp."""

    def both(v: Expr) -> Expr:
        size = tirx.min(tirx.abs(v), splat(_ERF_ONE, x))
        near = v * horner(v * v, _ERF)
        return let(size, lambda s: tirx.Select(s < splat(1.0, x), near, _with_sign(far(s), v)))

    def far(s: Expr) -> Expr:
        t = splat(1.0, x) / (splat(1.0, x) + splat(0.5, x) * s)
        return subtract(splat(1.0, x), exp(negative(s * s)) * let(t, lambda u: horner(u, _ERFC)))

    return let(x, both)


def _with_sign(size: Expr, of: Expr) -> Expr:
    return let(size, lambda s: tirx.Select(of < splat(0.0, of), negative(s), s))


def sin(x: Expr) -> Expr:
    """sin x within 3e-8, for |x| < 1e9."""
    return _turn(x, 0)


def cos(x: Expr) -> Expr:
    """cos x, as `sin`: positions times frequencies reach far beyond what float32 can reduce."""
    return _turn(x, 1)


def _turn(x: Expr, quarter: int) -> Expr:
    """sin(x + quarter * pi / 2): reduced to [-pi/4, pi/4] and summed (Taylor) in float64."""
    odd = tuple((-1.0) ** (i // 2) / factorial(i) for i in range(13, 0, -2))
    even = tuple((-1.0) ** (i // 2) / factorial(i) for i in range(14, -1, -2))

    def reduced(v: Expr, k: Expr) -> Expr:
        quadrant = tirx.Cast("int64", k) + tirx.const(quarter, "int64")
        r = v + k * tirx.const(-pi / 2, "float64")

        def value(y: Expr) -> Expr:
            sine, cosine = y * horner(y * y, odd), horner(y * y, even)
            size = tirx.Select((quadrant & tirx.const(1, "int64")).equal(0), sine, cosine)
            return tirx.Select((quadrant & tirx.const(2, "int64")).equal(0), size, negative(size))

        return tirx.Cast("float32", let(r, value))

    wide = tirx.Cast("float64", x)
    return let(
        wide, lambda v: let(tirx.nearbyint(v * tirx.const(2 / pi, "float64")), lambda k: reduced(v, k))
    )
