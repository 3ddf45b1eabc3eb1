"""What each operator needs of its inputs for a part of its output, and how it looks on a device with no more than that.

A rule goes from outputs to inputs: of a part of the output, or None for all of it, to a part of each input. Axes are
counted from the front. What no rule knows is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from llcompile.dataflow.nodes import ATTENTION, LINEAR, Node
from llcompile.shard.parts import CannotCut, Part, Ranges, union

Needs = tuple[Part | None, ...]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Known:
    """Shapes of all tensors, with a large prime for the new tokens, and the values of the constant ones."""

    shapes: Mapping[str, tuple[int, ...]]
    constants: Mapping[str, Array]

    def integers(self, name: str) -> list[int]:
        return [int(i) for i in self.constants[name].reshape(-1)]


def needs(node: Node, outputs: Sequence[Part | None], known: Known) -> Needs:
    """What `node` needs of each input for `outputs`. Raises CannotCut."""
    if all(part is None for part in outputs):
        return (None,) * len(node.inputs)
    if node.op == "Split":
        return _split(node, outputs, known)
    rule = _RULES.get(node.op)
    part = outputs[0]
    if rule is None or part is None or len(outputs) > 1:
        raise CannotCut(f"nothing is known of a part of what {node.op} makes")
    return rule(node, part, known)


def _all_but_first(node: Node, first: Part) -> Needs:
    return (first, *(None for _ in node.inputs[1:]))


def _linear(node: Node, part: Part, known: Known) -> Needs:
    if part.axis != len(known.shapes[node.outputs[0]]) - 1:
        raise CannotCut("a product with a matrix would be cut along the tokens")
    return (None, *(Part(0, part.ranges) for _ in node.inputs[1:]))


def _attention(node: Node, part: Part, known: Known) -> Needs:
    """By heads: whole groups of those that read one key head, or some of one group."""
    heads, kv_heads = (known.shapes[name][1] for name in node.inputs[:2])
    if part.axis != 1 or len(part.ranges) != 1:
        raise CannotCut("attention would be cut otherwise than by heads")
    keys = key_heads(*part.ranges[0], heads // kv_heads)
    return part, Part(1, (keys,)), Part(1, (keys,))


def key_heads(start: int, stop: int, group: int) -> tuple[int, int]:
    """Which key heads the query heads start..stop-1 read, `group` of which read one. Raises CannotCut."""
    if start % group == 0 and stop % group == 0:
        return start // group, stop // group
    if start // group == (stop - 1) // group:
        return start // group, start // group + 1
    raise CannotCut(f"heads {start} to {stop - 1} are neither whole groups of {group} nor of one group")


def _transpose(node: Node, part: Part, known: Known) -> Needs:
    rank = len(known.shapes[node.outputs[0]])
    order = [int(i) for i in node.numbers("perm")] or list(range(rank))[::-1]
    return (Part(order[part.axis], part.ranges),)


def _elementwise(node: Node, part: Part, known: Known) -> Needs:
    return tuple(_broadcast(node, part, name, known) if name else None for name in node.inputs)


def _broadcast(node: Node, part: Part, name: str, known: Known) -> Part | None:
    """What is needed of input `name`, which may have fewer axes than the output, or 1 where the output has more."""
    shape, rank = known.shapes[name], len(known.shapes[node.outputs[0]])
    axis = part.axis - (rank - len(shape))
    return Part(axis, part.ranges) if axis >= 0 and shape[axis] > 1 else None


def _norm(node: Node, part: Part, known: Known) -> Needs:
    axis = int(node.attribute("axis", -1)) % len(known.shapes[node.inputs[0]])
    if part.axis >= axis or len(node.outputs) > 1:
        raise CannotCut(f"{node.op} is over all that would be divided")
    return part, *(_broadcast(node, part, name, known) if name else None for name in node.inputs[1:])


def _mean(node: Node, part: Part, known: Known) -> Needs:
    rank = len(known.shapes[node.inputs[0]])
    axes = [axis % rank for axis in known.integers(node.inputs[1])]
    if not node.attribute("keepdims", 1) or part.axis in axes:
        raise CannotCut("ReduceMean is over all that would be divided")
    return _all_but_first(node, part)


def _rotary(node: Node, part: Part, known: Known) -> Needs:
    if part.axis != 1 or len(known.shapes[node.inputs[0]]) != 4:
        raise CannotCut("RotaryEmbedding would be cut otherwise than by heads")
    return _all_but_first(node, part)


def _reshape(node: Node, part: Part, known: Known) -> Needs:
    """The axis of the input that counts the same things: its indices, times what lies within each, are the output's."""
    old, new = known.shapes[node.inputs[0]], known.shapes[node.outputs[0]]
    inner = prod(new[part.axis + 1 :])
    period, flat = new[part.axis] * inner, [(a * inner, b * inner) for a, b in part.ranges]
    for axis in sorted(range(len(old)), key=lambda axis: -old[axis]):
        width = prod(old[axis + 1 :])
        if old[axis] * width == period and all(a % width == b % width == 0 for a, b in flat):
            return _all_but_first(node, Part(axis, tuple((a // width, b // width) for a, b in flat)))
    raise CannotCut(f"{node.op} from {_text(old)} to {_text(new)} takes apart what would be on one device")


def _text(shape: Sequence[int]) -> str:
    return str([dim if dim < 1 << 40 else "n" for dim in shape])


def _slice(node: Node, part: Part, known: Known) -> Needs:
    taken = taken_of(node, known)
    own = taken.get(part.axis)
    if own is not None and own.step != 1:
        raise CannotCut("Slice takes every other index of what would be divided")
    return _all_but_first(node, part.shifted(own.start) if own is not None else part)


def taken_of(node: Node, known: Known) -> dict[int, range]:
    """Which indices a Slice takes, by axis."""
    shape = known.shapes[node.inputs[0]]
    starts, stops, *rest = (known.integers(name) for name in node.inputs[1:])
    axes = rest[0] if rest else list(range(len(starts)))
    steps = rest[1] if len(rest) > 1 else [1] * len(starts)
    return {
        axis % len(shape): range(shape[axis])[start:stop:step]
        for start, stop, axis, step in zip(starts, stops, axes, steps, strict=True)
    }


def _split(node: Node, outputs: Sequence[Part | None], known: Known) -> Needs:
    axis = int(node.attribute("axis")) % len(known.shapes[node.inputs[0]])
    if len(node.inputs) < 2:
        raise CannotCut("Split says no sizes")
    parts = [part for part in outputs if part is not None]
    if len(parts) < len(outputs):
        raise CannotCut("Split makes what is needed whole beside what would be divided")
    if all(part.axis == axis for part in parts):
        sizes = [known.shapes[name][axis] for name in node.outputs]
        return _all_but_first(node, union(p.shifted(sum(sizes[:i])) for i, p in enumerate(parts)))
    if any(part != parts[0] for part in parts):
        raise CannotCut("Split makes parts that would be divided in different ways")
    return _all_but_first(node, parts[0])


def _concat(node: Node, part: Part, known: Known) -> Needs:
    axis = int(node.attribute("axis")) % len(known.shapes[node.outputs[0]])
    if part.axis == axis:
        raise CannotCut("Concat joins what would be divided")
    return tuple(part for _ in node.inputs)


def _expand(node: Node, part: Part, known: Known) -> Needs:
    return _broadcast(node, part, node.inputs[0], known), None


_ELEMENTWISE = (
    "Add", "Sub", "Mul", "Div", "Neg", "Pow", "Sqrt", "Reciprocal", "Cast", "Cos", "Sin", "Erf", "Exp", "Gelu",
    "Relu", "Sigmoid", "Softplus", "Tanh",
)  # fmt: skip
_RULES: Mapping[str, Callable[[Node, Part, Known], Needs]] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(("Reshape", "Unsqueeze", "Squeeze"), _reshape),
    **dict.fromkeys(("RMSNormalization", "LayerNormalization"), _norm),
    LINEAR: _linear,
    ATTENTION: _attention,
    "Transpose": _transpose,
    "ReduceMean": _mean,
    "RotaryEmbedding": _rotary,
    "Slice": _slice,
    "Concat": _concat,
    "Expand": _expand,
}


def constants_of(
    node: Node, outputs: Sequence[Part | None], inputs: Sequence[Part | None], known: Known
) -> dict[int, Array]:
    """The constants, by number of the input, that are other ones where `node` makes `outputs` of `inputs` alone."""
    part = outputs[0]
    if part is None:
        return {}
    if node.op in ("Reshape", "Expand"):
        shape = known.constants[node.inputs[1]].copy()
        place = part.axis - (len(known.shapes[node.outputs[0]]) - len(shape))
        if place >= 0 and shape[place] > 1:
            shape[place] = part.size
        return {1: shape}
    if node.op == "Split":
        axis = int(node.attribute("axis")) % len(known.shapes[node.inputs[0]])
        sizes = [
            p.size if p and p.axis == axis else known.shapes[n][axis]
            for n, p in zip(node.outputs, outputs, strict=True)
        ]
        return {1: np.array(sizes, np.int64)}
    whole = inputs[0]
    own = taken_of(node, known).get(part.axis) if node.op == "Slice" else None
    if own is None or whole is None:
        return {}
    start = part.shifted(own.start).place_in(whole)
    axes = (
        known.integers(node.inputs[3])
        if len(node.inputs) > 3
        else list(range(len(known.integers(node.inputs[1]))))
    )
    place = [axis % len(known.shapes[node.inputs[0]]) for axis in axes].index(part.axis)
    starts, stops = (known.constants[name].copy() for name in node.inputs[1:3])
    starts[place], stops[place] = start, start + part.size
    return {1: starts, 2: stops}


def slopes_of(node: Node, ranges: Ranges) -> Node:
    """Attention with the slopes of the heads in `ranges`, where each head has one."""
    slopes = node.numbers("alibi")
    if not slopes:
        return node
    return node.with_numbers("alibi", [slope for start, stop in ranges for slope in slopes[start:stop]])
