"""Tensors while a function is built: an element as an expression of its indices, put into memory where needed.

Element-wise operators and index arithmetic (reshape, transpose, slice, ...) so fuse into one loop nest: the one
that writes a tensor which a kernel reads or the function returns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd, prod
from typing import Any

from numpy.typing import NDArray
from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as B

from llcompile.lower.kernels.vector import Expr

Dim = int | str  # "n": the new tokens
Shape = tuple[Dim, ...]
Index = Sequence[Expr]
MAX_COST = 64
_PARALLEL_ELEMENTS = 1 << 15
_SPLIT = 4096


class Loads:
    """The tensors that a fused loop nest reads, each a buffer argument; `sums`: products that its kernel has just
    computed, by their names."""

    def __init__(self, n: Expr | int, sums: Mapping[str, Expr] | None = None) -> None:
        self.n = n
        self.sums = sums or {}
        self.buffers: dict[relax.Expr, tirx.Buffer] = {}
        self._bound: dict[str, Expr] = {}

    def once(self, name: str, compute: Callable[[], Expr]) -> Expr:
        """What `compute` returns, computed by the first call with that `name`."""
        if name not in self._bound:
            self._bound[name] = B.Bind(compute())
        return self._bound[name]

    def extents(self, shape: Shape) -> tuple[Expr | int, ...]:
        return tuple(self.n if d == "n" else d for d in shape)

    def load(self, value: Value, index: Index) -> Expr:
        source = value.source
        if source not in self.buffers:
            self.buffers[source] = B.buffer(self.extents(value.shape), value.dtype)
        return self.buffers[source][tuple(index)]


Element = Callable[[Loads, Index], Expr]


@dataclass
class Value:
    """A tensor. `element` gives one element; once `source` is set the tensor is in memory, read from there.

    `cost`: operations an element takes. `inner`: index expressions are plain along runs of that many elements
    of the last dimension (0: the whole dimension). `constant`: its value when it is known here. `quantised`: codes,
    scales and totals in memory, as kernels.quantise makes them, of a tensor that only products read. `same_order`:
    a tensor of another shape with the same elements in the same row-major order.
    """

    shape: Shape
    dtype: str
    element: Element
    cost: int = 0
    inner: int = 0
    source: relax.Expr | None = None
    quantised: tuple[relax.Expr, ...] = ()
    same_order: Value | None = field(default=None, repr=False)
    constant: NDArray[Any] | None = field(default=None, repr=False)

    def in_place(self) -> relax.Expr | None:
        """Where its elements lie in row-major order, if anywhere."""
        value: Value | None = self
        while value is not None and value.source is None:
            value = value.same_order
        return value.source if value else None

    def at(self, loads: Loads, index: Index) -> Expr:
        if self.source is not None:
            return loads.load(self, index)
        return self.element(loads, index)


def stored(shape: Shape, dtype: str, source: relax.Expr) -> Value:
    """A tensor in memory."""

    return Value(shape, dtype, _no_element, source=source)


def quantised(shape: Shape, parts: Sequence[relax.Expr]) -> Value:
    """A float32 tensor of which there are codes, scales and totals alone."""
    return Value(shape, "float32", _no_element, quantised=tuple(parts))


def _no_element(loads: Loads, index: Index) -> Expr:
    raise AssertionError("a tensor in memory is loaded, and one in int8 is read by products alone")


def constant(array: NDArray[Any]) -> Value:
    """A tensor known at compile time: a number inline, anything larger as a constant of the executable."""
    dtype = str(array.dtype)
    if array.size == 1:
        number = tirx.const(array.reshape(()).item(), dtype)
        return Value(tuple(array.shape), dtype, lambda loads, index: number, constant=array)
    value = stored(tuple(array.shape), dtype, relax.const(array, dtype))
    value.constant = array
    return value


def run_length(values: Sequence[Value], last: Dim) -> int:
    """Longest run along the last dimension for which all `values` have plain indices."""
    length = gcd(*(v.inner for v in values))
    return length if isinstance(last, int) and length and last % length == 0 else 0


def loop_nest(value: Value, n: Expr | int) -> tuple[tirx.PrimFunc, list[relax.Expr]]:
    """The function that writes `value`, and the tensors that are its arguments before the output."""
    loads = Loads(n)
    loops = _loops(value, n)
    with IRBuilder() as builder, B.prim_func(private=True, s_tir=True):
        B.func_attr({"tirx.noalias": True})
        probe = [tirx.Var(f"p{i}", "int64") for i in range(len(value.shape))]
        value.at(loads, probe)
        for number, buffer in enumerate(loads.buffers.values()):
            B.arg(f"in{number}", buffer)
        out = B.arg("out", B.buffer(loads.extents(value.shape), value.dtype))
        _emit(value, loads, out, loops, [])
    return builder.get(), list(loads.buffers)


@dataclass(frozen=True)
class _Loop:
    extent: Expr | int
    parallel: bool
    axis: int
    stride: int


def _loops(value: Value, n: Expr | int) -> list[_Loop]:
    extents = [n if d == "n" else d for d in value.shape]
    loops = [_Loop(e, False, axis, 1) for axis, e in enumerate(extents)]
    last = value.shape[-1] if value.shape else 1
    if isinstance(last, int):
        run = value.inner or (_SPLIT if last % _SPLIT == 0 else last)
        if 0 < run < last and last % run == 0:
            axis = len(extents) - 1
            loops[-1:] = [_Loop(last // run, False, axis, run), _Loop(run, False, axis, 1)]
    fixed = prod(e for e in extents if isinstance(e, int))
    if fixed >= _PARALLEL_ELEMENTS or any(not isinstance(e, int) for e in extents):
        first = next((i for i, loop in enumerate(loops[:-1]) if loop.extent != 1), None)
        if first is not None:
            loops[first] = _Loop(loops[first].extent, True, loops[first].axis, loops[first].stride)
    return loops


def _emit(value: Value, loads: Loads, out: tirx.Buffer, loops: list[_Loop], variables: list[Expr]) -> None:
    if len(variables) < len(loops):
        loop = loops[len(variables)]
        kind = B.parallel if loop.parallel else B.serial
        with kind(tirx.const(0, "int64"), _long(loop.extent)) as variable:
            _emit(value, loads, out, loops, [*variables, variable])
        return
    index: list[Any] = [tirx.const(0, "int64")] * len(value.shape)
    for loop, variable in zip(loops, variables, strict=True):
        index[loop.axis] = index[loop.axis] + variable * loop.stride
    B.buffer_store(out, value.at(loads, index), index)


def _long(extent: Expr | int) -> Expr:
    return tirx.const(extent, "int64") if isinstance(extent, int) else extent
