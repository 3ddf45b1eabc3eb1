"""What both attention kernels share: their arguments, and how queries, keys and values come in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as B

from llcompile.ir.packing import cache_arguments
from llcompile.lower.kernels.attention.cache import Cache, Head
from llcompile.lower.kernels.attention.softmax import query_scale
from llcompile.lower.kernels.attention.spec import LOG2_E, AttentionSpec
from llcompile.lower.kernels.vector import Expr, Extent, local
from llcompile.lower.values import Loads, Value


@dataclass(frozen=True)
class Inputs:
    """q (1, H, n, d), k (1, Hkv, n, d), v (1, Hkv, n, dv): in memory, or computed where they are read."""

    query: Value
    key: Value
    value: Value


@dataclass(frozen=True)
class Arguments:
    """Buffers of a kernel: position_ids (1, n); slopes (H,), not read ((1,)) without ALiBi; slots; caches; out
    (1, n, H, dv)."""

    spec: AttentionSpec
    inputs: Inputs
    loads: Loads
    position: tirx.Buffer
    slopes: tirx.Buffer
    slots: tirx.Buffer
    cache: Cache
    out: tirx.Buffer
    workspace: tirx.Buffer | None

    def slope(self, head: Expr) -> Expr | None:
        """ALiBi's slope in units of ln 2."""
        return self.slopes[head] * tirx.const(LOG2_E, "float32") if self.spec.alibi else None

    def load_query(self, to: tirx.Buffer, row: Expr, head: Expr, token: Expr) -> None:
        """to[row] = the query, scaled."""
        scale = tirx.const(query_scale(self.spec), "float32")
        self._load(self.inputs.query, head, token, lambda j, x: B.buffer_store(to, x * scale, [row, j]))

    def append(self, to: Head, token: Expr, position: Expr) -> None:
        """Write key and value of new token `token` at `position` of the cache."""
        rows = []
        for value in (self.inputs.key, self.inputs.value):
            rows.append(local((int(value.shape[3]),)))
            self._load(value, to.head, token, partial(_store, rows[-1]))
        to.append(position, *rows)

    def _load(self, value: Value, head: Expr, token: Expr, store: Callable[[Expr, Expr], None]) -> None:
        """store(column, element) for a row of `value`; runs in which its indices are plain are loops of their own,
        which can be vectorised."""
        width = int(value.shape[3])
        together = value.inner if 0 < value.inner < width and width % value.inner == 0 else width
        with B.serial(width // together) as part, B.serial(together) as j:
            column = part * together + j
            store(column, value.at(self.loads, [tirx.const(0, "int64"), head, token, _long(column)]))


def _store(row: tirx.Buffer, column: Expr, element: Expr) -> None:
    B.buffer_store(row, element, [column])


def _long(index: Expr) -> Expr:
    return tirx.Cast("int64", index)


def build(
    n: Extent,
    sequences: Extent,
    spec: AttentionSpec,
    inputs: Inputs,
    workspace: tuple[Expr | int, ...] | None,
    body: Callable[[Arguments], None],
) -> tuple[tirx.PrimFunc, list[relax.Expr]]:
    """The function whose body is `body`, and the tensors that are its first arguments; then come position_ids,
    slopes, slots, the caches, the output and, if it has a shape, the workspace."""
    loads = Loads(n)
    capacity = tirx.Var("capacity", "int64")
    with IRBuilder() as builder, B.prim_func(private=True, s_tir=True):
        B.func_attr({"tirx.noalias": True})
        for value in (inputs.query, inputs.key, inputs.value):
            value.at(loads, [tirx.Var(f"p{i}", "int64") for i in range(4)])
        for number, buffer in enumerate(loads.buffers.values()):
            B.arg(f"in{number}", buffer)
        position = B.arg("position", B.buffer((1, n), "int64"))
        slopes = B.arg("slopes", B.buffer((spec.heads if spec.alibi else 1,), "float32"))
        slots = B.arg("slots", B.buffer((sequences,), "int64"))
        kinds = cache_arguments(spec.cache, spec.kv_heads, spec.key_dim, spec.value_dim, spec.context)
        caches = [
            B.arg(f"cache{i}", B.buffer((capacity, *shape), dtype)) for i, (dtype, shape) in enumerate(kinds)
        ]
        out = B.arg("out", B.buffer((1, n, spec.heads, spec.value_dim), "float32"))
        space = B.arg("workspace", B.buffer(workspace, "float32")) if workspace else None
        body(Arguments(spec, inputs, loads, position, slopes, slots, Cache(*caches), out, space))
    return builder.get(), list(loads.buffers)
