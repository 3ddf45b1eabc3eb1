"""Rotary position embedding as one node, over tables that positions alone decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from llcompile.frontend.canonical import rewriting as rw


@dataclass(frozen=True)
class _Rotation:
    """x · cos + rotate_half(x) · sin; cos and sin are tables (1, n, width) whose halves are equal."""

    x: ir.Value
    cos: ir.Value
    sin: ir.Value
    width: int


def _last_slice(value: ir.Value | None) -> tuple[ir.Value, int, int] | None:
    """(x, start, stop) of a slice x[..., start:stop] of the last axis, with step 1."""
    node = rw.produced_by(value, "Slice")
    if node is None or len(node.inputs) < 4:
        return None
    x, shape = node.inputs[0], rw.dims(node.inputs[0])
    starts, stops, axes = (rw.integers(v) for v in node.inputs[1:4])
    steps = rw.integers(node.inputs[4]) if len(node.inputs) > 4 else (1,)
    if x is None or shape is None or not starts or not stops or not axes or steps != (1,):
        return None
    width = shape[-1]
    if len(axes) != 1 or axes[0] % len(shape) != len(shape) - 1 or not isinstance(width, int):
        return None
    start, stop = starts[0], min(stops[0], width)
    return x, start + (width if start < 0 else 0), stop + (width if stop < 0 else 0)


def _half_rotated(value: ir.Value | None) -> ir.Value | None:
    """x of Concat(-x[..., d/2:], x[..., :d/2])."""
    parts = rw.operands(rw.produced_by(value, "Concat"))
    negated = rw.produced_by(parts[0], "Neg") if len(parts) == 2 else None
    if negated is None:
        return None
    upper, lower = _last_slice(negated.inputs[0]), _last_slice(parts[1])
    if upper is None or lower is None or upper[0] is not lower[0]:
        return None
    width = (rw.dims(upper[0]) or (0,))[-1]
    if not isinstance(width, int) or (lower[1:], upper[1:]) != ((0, width // 2), (width // 2, width)):
        return None
    return upper[0]


def _table(value: ir.Value | None) -> ir.Value | None:
    """The (1, n, width) table that is unsqueezed to (1, 1, n, width) for all heads."""
    node = rw.produced_by(value, "Unsqueeze")
    return node.inputs[0] if node is not None and rw.integers(node.inputs[1]) == (1,) else None


def _rotation(node: ir.Node) -> _Rotation | None:
    """The rotation that an Add computes."""
    for direct, turned in (tuple(node.inputs), tuple(node.inputs)[::-1]):
        for x, cos in _orders(direct):
            for half, sin in _orders(turned):
                tables = _table(cos), _table(sin)
                if x is None or tables[0] is None or tables[1] is None or _half_rotated(half) is not x:
                    continue
                width = (rw.dims(x) or (0,))[-1]
                if isinstance(width, int):
                    return _Rotation(x, tables[0], tables[1], width)
    return None


def _orders(product: ir.Value | None) -> tuple[tuple[ir.Value | None, ...], ...]:
    factors = rw.operands(rw.produced_by(product, "Mul"))
    return (factors, factors[::-1]) if len(factors) == 2 else ()


def _halve(table: ir.Value, function: str) -> ir.Value | None:
    """Cos or Sin of the angles once instead of twice: f(Concat(a, a)) · s becomes f(a) · s.

    None when the table is not built so: its halves might then differ.
    """
    scaled = rw.produced_by(table, "Mul")
    factor = rw.scalar(scaled.inputs[1]) if scaled is not None else None
    inner = scaled.inputs[0] if scaled is not None else table
    node = rw.produced_by(inner, function)
    angles = rw.operands(rw.produced_by(node.inputs[0], "Concat")) if node is not None else ()
    if node is None or (scaled is not None and factor is None):
        return None
    if len(angles) != 2 or angles[0] is not angles[1] or angles[0] is None:
        return None
    half = rw.insert(node, function, [angles[0]], [angles[0]]).outputs[0]
    half.name = f"{table.name}_half"
    if scaled is None:
        return half
    return rw.insert(scaled, "Mul", [half, scaled.inputs[1]], [half]).outputs[0]


@dataclass(frozen=True)
class RotaryEmbeddings:
    """Rotation of all or the first `width` features of a head becomes RotaryEmbedding (arXiv 2104.09864).

    before: c = Cos(Concat(a, a)); s = Sin(Concat(a, a)); r = Concat(Neg(Slice(x, d/2:)), Slice(x, :d/2))
            y = Add(Mul(x, Unsqueeze(c, 1)), Mul(r, Unsqueeze(s, 1)))
    after:  y (1, H, n, d) = RotaryEmbedding(x, Cos(a), Sin(a)) {interleaved = 0}

    Partial rotation, y = Concat(rotated(Slice(x, :width)), Slice(x, width:)), becomes one node with
    rotary_embedding_dim = width. Tables are (1, n, width / 2): functions of `position_ids` alone. Other
    rotations (interleaved pairs) keep their elementwise nodes.
    """

    name: ClassVar[str] = "rotary-embeddings"
    requires: ClassVar[frozenset[str]] = frozenset({"constants-are-initializers"})
    ensures: ClassVar[frozenset[str]] = frozenset({"rotary"})

    def run(self, value: ir.Model) -> ir.Model:
        halves: dict[int, ir.Value | None] = {}
        for node in rw.nodes(value, "Add"):
            rotation = _rotation(node)
            if rotation is None:
                continue
            for table, function in ((rotation.cos, "Cos"), (rotation.sin, "Sin")):
                if id(table) not in halves:
                    halves[id(table)] = _halve(table, function)
            cos, sin = halves[id(rotation.cos)], halves[id(rotation.sin)]
            if cos is not None and sin is not None:
                self._substitute(node, rotation, cos, sin)
        return value

    @staticmethod
    def _substitute(node: ir.Node, rotation: _Rotation, cos: ir.Value, sin: ir.Value) -> None:
        concat, part = rw.only_use(node.outputs[0]), _last_slice(rotation.x)
        if concat is not None and concat.op_type == "Concat" and part is not None and part[1] == 0:
            whole = part[0]
            rest = _last_slice(concat.inputs[1]) if len(concat.inputs) == 2 else None
            width = (rw.dims(whole) or (0,))[-1]
            if rest == (whole, rotation.width, width) and concat.inputs[0] is node.outputs[0]:
                attributes = {"interleaved": 0, "rotary_embedding_dim": rotation.width}
                rw.substitute(concat, "RotaryEmbedding", [whole, cos, sin], attributes)
                return
        rw.substitute(node, "RotaryEmbedding", [rotation.x, cos, sin], {"interleaved": 0})
