"""Gaussian error linear units as one node."""

from __future__ import annotations

from dataclasses import dataclass
from math import isclose, pi, sqrt
from typing import ClassVar

import onnx_ir as ir

from llcompile.frontend.canonical import rewriting as rw

_CUBIC = 0.044715


def _terms(value: ir.Value | None, op: str) -> list[tuple[float, ir.Value | None]]:
    """(constant, other operand) of a sum or product with a constant, in whichever order."""
    pair = rw.operands(rw.produced_by(value, op))
    orders = ((pair[0], pair[1]), (pair[1], pair[0])) if len(pair) == 2 else ()
    return [(number, other) for c, other in orders if (number := rw.scalar(c)) is not None]


def _scaled(value: ir.Value | None, factor: float) -> ir.Value | None:
    """x of factor · x; constants are compared to float32's precision as models write them."""
    candidates = (x for number, x in _terms(value, "Mul") if isclose(number, factor, rel_tol=1e-5))
    return next(candidates, None)


def _plus_one(value: ir.Value | None) -> ir.Value | None:
    return next((x for number, x in _terms(value, "Add") if number == 1.0), None)


def _factors(value: ir.Value | None, count: int) -> list[ir.Value] | None:
    """The operands of a product of `count` factors, however it is bracketed."""
    factors = [value]
    while len(factors) < count:
        at = next((i for i, f in enumerate(factors) if rw.produced_by(f, "Mul") is not None), None)
        if at is None:
            return None
        factors[at : at + 1] = rw.operands(factors[at].producer())  # type: ignore[union-attr]
    return [f for f in factors if f is not None]


def _is_cubic_angle(value: ir.Value | None, x: ir.Value) -> bool:
    """sqrt(2/π) · (x + 0.044715 x³), as GPT-2 (outer factor) or BLOOM (factored out x) writes it."""
    outer = _scaled(value, sqrt(2 / pi))
    if outer is not None:
        sides = rw.operands(rw.produced_by(outer, "Add"))
        return len(sides) == 2 and any(
            a is x and _is_cube(_scaled(b, _CUBIC), x) for a, b in (sides, sides[::-1])
        )
    sides = rw.operands(rw.produced_by(value, "Mul"))
    return len(sides) == 2 and any(
        _scaled(a, sqrt(2 / pi)) is x and _is_scaled_square(_plus_one(b), x) for a, b in (sides, sides[::-1])
    )


def _is_cube(value: ir.Value | None, x: ir.Value) -> bool:
    power = rw.operands(rw.produced_by(value, "Pow"))
    if len(power) == 2:
        return power[0] is x and rw.scalar(power[1]) == 3.0
    factors = _factors(value, 3)
    return factors is not None and all(f is x for f in factors)


def _is_scaled_square(value: ir.Value | None, x: ir.Value) -> bool:
    """0.044715 · x · x."""
    factors = _factors(value, 3) or []
    numbers = [n for f in factors if (n := rw.scalar(f)) is not None]
    return (
        len(numbers) == 1 and isclose(numbers[0], _CUBIC, rel_tol=1e-5) and sum(f is x for f in factors) == 2
    )


def _gelu(node: ir.Node) -> tuple[ir.Value, str] | None:
    """(x, approximate) when `node` computes 0.5 · x · (1 + tanh(...)) or 0.5 · x · (1 + erf(x / sqrt 2))."""
    factors = _factors(node.outputs[0], 3)
    if factors is None or not any(rw.scalar(f) == 0.5 for f in factors):
        return None
    others = [f for f in factors if rw.scalar(f) is None]
    for x, gate in (others, others[::-1]) if len(others) == 2 else ():
        inner = _plus_one(gate)
        tanh, erf = rw.produced_by(inner, "Tanh"), rw.produced_by(inner, "Erf")
        if tanh is not None and _is_cubic_angle(tanh.inputs[0], x):
            return x, "tanh"
        if erf is not None and _scaled(erf.inputs[0], sqrt(0.5)) is x:
            return x, "none"
    return None


@dataclass(frozen=True)
class GaussianUnits:
    """0.5 · x · (1 + tanh(sqrt(2/π)(x + 0.044715 x³))) becomes Gelu (Hendrycks and Gimpel, arXiv 1606.08415).

    before: y = Mul(Mul(x, 0.5), Add(Tanh(Mul(Add(x, Mul(Pow(x, 3), 0.044715)), 0.7978846)), 1))
    after:  y = Gelu(x) {approximate = tanh}       and with Erf(x / sqrt 2): approximate = none

    Other activations stay elementwise.
    """

    name: ClassVar[str] = "gaussian-units"
    requires: ClassVar[frozenset[str]] = frozenset({"constants-are-initializers"})
    ensures: ClassVar[frozenset[str]] = frozenset()

    def run(self, value: ir.Model) -> ir.Model:
        for node in rw.nodes(value, "Mul"):
            gelu = _gelu(node)
            if gelu is not None:
                rw.substitute(node, "Gelu", [gelu[0]], {"approximate": gelu[1]})
        return value
