"""Operators that only move elements: each is a change of index, computed where the element is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd, prod

from tvm import tirx

from llcompile.lower.emitter import Emitter, OpEmitter
from llcompile.lower.kernels.vector import Expr
from llcompile.lower.onnx_graph import Array, Node
from llcompile.lower.operators.elementwise import broadcast_at, broadcast_shape
from llcompile.lower.values import Dim, Index, Loads, Shape, Value


def integers(emitter: Emitter, node: Node, position: int, attribute: str) -> list[int] | None:
    """Constant integers given as input number `position` or, in older operator sets, as an attribute."""
    if position < len(node.inputs) and node.inputs[position]:
        array = emitter.values[node.inputs[position]].constant
        if array is None:
            raise emitter.error("L113", node, f"input {position} must be a constant")
        return [int(i) for i in array.reshape(-1)]
    if attribute in node.attributes:
        given = node.attributes[attribute]
        return list(given) if isinstance(given, Sequence) else [int(given)]
    return None


def _axis(axis: int, rank: int) -> int:
    return axis + rank if axis < 0 else axis


def _size(dims: Shape) -> tuple[int, int]:
    """(constant factor, power of n) of the number of elements."""
    return prod(d for d in dims if isinstance(d, int)), sum(d == "n" for d in dims)


def _target_shape(emitter: Emitter, node: Node, source: Shape) -> Shape:
    asked = integers(emitter, node, 1, "shape")
    if asked is None:
        raise emitter.error("L113", node, "no shape given")
    keep = not node.attributes.get("allowzero", 0)
    dims: list[Dim] = [source[i] if d == 0 and keep else d for i, d in enumerate(asked)]
    if -1 in dims:
        hole = dims.index(-1)
        rest = [d for i, d in enumerate(dims) if i != hole]
        factor, tokens = _size(source)
        known, used = _size(tuple(rest))
        if tokens - used == 1 and factor == known:
            dims[hole] = "n"
        elif tokens == used and known and factor % known == 0:
            dims[hole] = factor // known
        else:
            raise emitter.error(
                "L114", node, f"cannot reshape {source} to {asked}: a dimension would mix n and others"
            )
    if _size(tuple(dims)) != _size(source):
        raise emitter.error("L114", node, f"cannot reshape {source} to {asked}")
    return tuple(dims)


def reshaped(value: Value, shape: Shape) -> Value:
    """Same elements in row-major order under another shape."""
    old, new = value.shape, shape
    shared = 0
    while shared < min(len(old), len(new)) and old[shared] == new[shared]:
        shared += 1

    def element(loads: Loads, index: Index) -> Expr:
        tail = _unravel(_ravel(index[shared:], loads.extents(new[shared:])), loads.extents(old[shared:]))
        return value.at(loads, [*index[:shared], *tail])

    run = _plain_run(value, new)
    known = _reshape_constant(value, shape)
    return Value(shape, value.dtype, element, value.cost, run, constant=known, same_order=value)


def _plain_run(value: Value, new: Shape) -> int:
    """Elements of the new last dimension whose old index differs in the last place alone."""
    old_last = value.shape[-1] if value.shape else 1
    new_last = new[-1] if new else 1
    if not isinstance(old_last, int) or not isinstance(new_last, int):
        return value.inner if old_last == new_last else 0
    run = gcd(value.inner or old_last, new_last)
    return 0 if run == new_last else run


def _reshape_constant(value: Value, shape: Shape) -> Array | None:
    if value.constant is None or "n" in shape:
        return None
    return value.constant.reshape([d for d in shape if isinstance(d, int)])


def _ravel(index: Index, extents: Sequence[Expr | int]) -> Expr:
    flat = tirx.const(0, "int64")
    for i, extent in zip(index, extents, strict=True):
        flat = flat * extent + i
    return flat


def _unravel(flat: Expr, extents: Sequence[Expr | int]) -> list[Expr]:
    index: list[Expr] = []
    for position, extent in reversed(list(enumerate(extents))):
        if isinstance(extent, int) and extent == 1:
            index.append(tirx.const(0, "int64"))
        elif position == 0:
            index.append(flat)
        else:
            index.append(tirx.floormod(flat, extent))
            flat = tirx.floordiv(flat, extent)
    return index[::-1]


def _reshape(emitter: Emitter, node: Node) -> list[Value]:
    value = emitter.value(node.inputs[0])
    return [reshaped(value, _target_shape(emitter, node, value.shape))]


def _unsqueeze(emitter: Emitter, node: Node) -> list[Value]:
    value = emitter.value(node.inputs[0])
    axes = integers(emitter, node, 1, "axes") or []
    rank = len(value.shape) + len(axes)
    places = {_axis(a, rank) for a in axes}
    dims = iter(value.shape)
    return [reshaped(value, tuple(1 if i in places else next(dims) for i in range(rank)))]


def _squeeze(emitter: Emitter, node: Node) -> list[Value]:
    value = emitter.value(node.inputs[0])
    axes = integers(emitter, node, 1, "axes")
    places = {_axis(a, len(value.shape)) for a in axes} if axes is not None else None
    kept = [d for i, d in enumerate(value.shape) if (i not in places if places is not None else d != 1)]
    return [reshaped(value, tuple(kept))]


def _transpose(emitter: Emitter, node: Node) -> list[Value]:
    value = emitter.value(node.inputs[0])
    order = list(node.attributes.get("perm", range(len(value.shape))[::-1]))
    shape = tuple(value.shape[i] for i in order)

    def element(loads: Loads, index: Index) -> Expr:
        return value.at(loads, [index[order.index(i)] for i in range(len(order))])

    moved = [i for i in order if value.shape[i] not in ((1, "n") if emitter.decode else (1,))]
    same = value if moved == sorted(moved) else None
    run = value.inner if order[-1] == len(order) - 1 else 0
    return [Value(shape, value.dtype, element, value.cost, run, same_order=same)]


def _sliced(value: Value, axis: int, start: int, length: Dim, step: int = 1) -> Value:
    shape = tuple(length if i == axis else d for i, d in enumerate(value.shape))

    def element(loads: Loads, index: Index) -> Expr:
        moved = list(index)
        moved[axis] = moved[axis] * step + start
        return value.at(loads, moved)

    inner = value.inner
    if axis == len(shape) - 1 and isinstance(length, int) and value.inner:
        inner = gcd(value.inner, start, length) % length if step == 1 else 0
    return Value(shape, value.dtype, element, value.cost, inner)


def _split(emitter: Emitter, node: Node) -> list[Value]:
    value = emitter.value(node.inputs[0])
    axis = _axis(int(node.attributes.get("axis", 0)), len(value.shape))
    extent = value.shape[axis]
    if not isinstance(extent, int):
        raise emitter.error("L113", node, "cannot split along the new tokens")
    count = len(node.outputs)
    sizes = integers(emitter, node, 1, "split") or [-(-extent // count)] * (count - 1)
    sizes = [*sizes, extent - sum(sizes)] if len(sizes) < count else sizes
    return [_sliced(value, axis, sum(sizes[:i]), size) for i, size in enumerate(sizes)]


def _slice(emitter: Emitter, node: Node) -> list[Value]:
    result = emitter.value(node.inputs[0])
    starts, stops = integers(emitter, node, 1, "starts") or [], integers(emitter, node, 2, "ends") or []
    axes = integers(emitter, node, 3, "axes") or list(range(len(starts)))
    steps = integers(emitter, node, 4, "steps") or [1] * len(starts)
    for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True):
        axis = _axis(axis, len(result.shape))
        extent = result.shape[axis]
        if not isinstance(extent, int):
            if start == 0 and stop >= 2**31 - 1 and step == 1:
                continue
            raise emitter.error("L113", node, "cannot take a slice along the new tokens")
        taken = range(extent)[start:stop:step]
        result = _sliced(result, axis, taken.start, len(taken), step)
    return [result]


def _concat(emitter: Emitter, node: Node) -> list[Value]:
    values = [emitter.value(name) for name in node.inputs]
    axis = _axis(int(node.attributes["axis"]), len(values[0].shape))
    sizes = [d for v in values if isinstance(d := v.shape[axis], int)]
    if len(sizes) < len(values):
        raise emitter.error("L113", node, "cannot concatenate along the new tokens")
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    shape = tuple(sum(sizes) if i == axis else d for i, d in enumerate(values[0].shape))

    def piece(number: int, loads: Loads, index: Index) -> Expr:
        moved = list(index)
        moved[axis] = moved[axis] - starts[number]
        return values[number].at(loads, moved)

    def element(loads: Loads, index: Index) -> Expr:
        result = piece(len(values) - 1, loads, index)
        for number in reversed(range(len(values) - 1)):
            inside = index[axis] < starts[number + 1]
            result = tirx.if_then_else(inside, piece(number, loads, index), result)
        return result

    runs = [v.inner for v in values]
    inner = gcd(*runs, *sizes) if axis == len(shape) - 1 else gcd(*runs)
    return [Value(shape, values[0].dtype, element, sum(v.cost for v in values), inner)]


def _expand(emitter: Emitter, node: Node) -> list[Value]:
    value = emitter.value(node.inputs[0])
    asked = integers(emitter, node, 1, "shape") or []
    shape = broadcast_shape(emitter, node, [value.shape, tuple(asked)])
    return [Value(shape, value.dtype, lambda loads, index: broadcast_at(value, loads, index), value.cost)]


def _gather(emitter: Emitter, node: Node) -> list[Value]:
    data, ids = (emitter.value(name) for name in node.inputs)
    axis = _axis(int(node.attributes.get("axis", 0)), len(data.shape))
    rank = len(ids.shape)
    shape = (*data.shape[:axis], *ids.shape, *data.shape[axis + 1 :])
    extent = data.shape[axis]

    def element(loads: Loads, index: Index) -> Expr:
        chosen = tirx.Cast("int64", ids.at(loads, index[axis : axis + rank]))
        if isinstance(extent, int):
            chosen = tirx.Select(chosen < 0, chosen + extent, chosen)
        return data.at(loads, [*index[:axis], chosen, *index[axis + rank :]])

    return [
        Value(
            shape, data.dtype, element, data.cost + ids.cost, data.inner if axis < len(data.shape) - 1 else 0
        )
    ]


SHAPES: Mapping[str, OpEmitter] = {
    "Reshape": _reshape,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Split": _split,
    "Slice": _slice,
    "Concat": _concat,
    "Expand": _expand,
    "Gather": _gather,
}
