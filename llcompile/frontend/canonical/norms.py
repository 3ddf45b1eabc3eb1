"""Root mean square normalisation as one node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from llcompile.frontend.canonical import rewriting as rw


def _squared(value: ir.Value | None) -> ir.Value | None:
    """x of Pow(x, 2) or Mul(x, x)."""
    pow_node, mul = rw.produced_by(value, "Pow"), rw.produced_by(value, "Mul")
    if pow_node is not None and rw.scalar(pow_node.inputs[1]) == 2.0:
        return pow_node.inputs[0]
    return mul.inputs[0] if mul is not None and mul.inputs[0] is mul.inputs[1] else None


def _mean_square(value: ir.Value | None) -> ir.Value | None:
    """x of the mean of x squared over the last axis."""
    mean = rw.produced_by(value, "ReduceMean")
    if mean is None or rw.attribute_int(mean, "keepdims", 1) != 1:
        return None
    squared = _squared(mean.inputs[0])
    rank = len(rw.dims(squared) or ())
    axes = rw.integers(mean.inputs[1]) if len(mean.inputs) > 1 else None
    return squared if axes in ((-1,), (rank - 1,)) else None


def _inverse_root(value: ir.Value | None) -> tuple[ir.Value, float] | None:
    """(x, epsilon) of 1 / sqrt(mean(x^2) + epsilon)."""
    reciprocal = rw.produced_by(value, "Reciprocal")
    root = rw.produced_by(reciprocal.inputs[0], "Sqrt") if reciprocal is not None else None
    add = rw.produced_by(root.inputs[0], "Add") if root is not None else None
    epsilon = rw.scalar(add.inputs[1]) if add is not None else None
    x = _mean_square(add.inputs[0]) if add is not None else None
    return None if x is None or epsilon is None else (x, epsilon)


def _normalised(value: ir.Value | None) -> tuple[ir.Value, float] | None:
    """(x, epsilon) of x / sqrt(mean(x^2) + epsilon), in either order of the product."""
    product = rw.operands(rw.produced_by(value, "Mul"))
    for left, right in (product, product[::-1]) if product else ():
        root = _inverse_root(right)
        if root is not None and root[0] is left:
            return root
    return None


def _is_vector(value: ir.Value | None, width: int | str) -> bool:
    return rw.dims(value) == (width,)


@dataclass(frozen=True)
class RootMeanSquareNorms:
    """x / sqrt(mean(x²) + ε) · w becomes RMSNormalization (Zhang and Sennrich, arXiv 1910.07467, eq. 4).

    before: y = Mul(w, Mul(x, Reciprocal(Sqrt(Add(ReduceMean(Pow(x, 2), [-1]), ε)))))
    after:  y = RMSNormalization(x, w) {epsilon = ε}

    w may be a weight or computed from one: Gemma's stays Add(weight, 1), so that the input is what is stored.
    Without a factor w the nodes stay as they are.
    """

    name: ClassVar[str] = "root-mean-square-norms"
    requires: ClassVar[frozenset[str]] = frozenset({"constants-are-initializers"})
    ensures: ClassVar[frozenset[str]] = frozenset({"norms"})

    def run(self, value: ir.Model) -> ir.Model:
        for node in rw.nodes(value, "Mul"):
            for inner, scale in (tuple(node.inputs), tuple(node.inputs)[::-1]):
                normalised = _normalised(inner)
                if normalised is None or not _is_vector(scale, (rw.dims(normalised[0]) or ("",))[-1]):
                    continue
                attributes = {"axis": -1, "epsilon": normalised[1], "stash_type": 1}
                rw.substitute(node, "RMSNormalization", [normalised[0], scale], attributes)
                break
        return value
