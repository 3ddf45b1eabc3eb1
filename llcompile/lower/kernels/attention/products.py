"""Products of query rows with keys, and of weights with values: one register block at a time.

Every sum is one chain of fused multiply-adds in the order of components (of keys): what it comes to does not
depend on the block that computes it.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.script.ir_builder import tirx as B

from llcompile.lower.kernels.vector import Expr, intrinsic, local, run, same, type_of, vector_type

Left = Callable[[int, Expr], Expr]  # float32 of (row, step)
Right = Callable[[int, Expr], Expr]  # float32xL of (vector, step)
Emit = Callable[[int, int, Expr], None]  # (row, vector, float32xL)


def fma(a: Expr, b: Expr, c: Expr, lanes: int) -> Expr:
    """a * b + c, rounded once."""
    return intrinsic(vector_type("float32", lanes), "llvm.fma", a, b, c)


def hold(value: Expr) -> Expr:
    """`value` (a scalar) computed here, once. A bound variable will not do for an index: the compiler puts its
    expression back wherever it is used, and one index built upon the other grows beyond all bounds."""
    buffer = local((1,), type_of(value))
    B.buffer_store(buffer, value, [0])
    return buffer[0]


def products(
    rows: int, vectors: int, lanes: int, steps: Expr | int, left: Left, right: Right, emit: Emit
) -> None:
    """emit(r, v, the sum over steps s of left(r, s) * right(v, s)), for all rows r and vectors v."""
    acc = local((rows * vectors * lanes,))
    zero = tirx.const(0.0, vector_type("float32", lanes))
    indexes = [[run((r * vectors + v) * lanes, lanes) for v in range(vectors)] for r in range(rows)]
    for row in indexes:
        for index in row:
            B.buffer_store(acc, zero, [index])
    with B.serial(steps) as s:
        others = [B.Bind(right(v, s)) for v in range(vectors)]
        for r, row in enumerate(indexes):
            each = B.Bind(same(left(r, s), lanes))
            for index, other in zip(row, others, strict=True):
                B.buffer_store(acc, fma(each, other, acc[index], lanes), [index])
    for r, row in enumerate(indexes):
        for v, index in enumerate(row):
            emit(r, v, acc[index])
