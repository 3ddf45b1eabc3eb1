# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-calls=False, disallow-untyped-decorators=False
# TVMScript looks like Python but is parsed by the compiler, which knows its own types.
"""Activations to int8, in groups of 32 along the features."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from llcompile.ir.packing import GROUP, pad
from llcompile.lower.kernels.vector import Expr, Extent, intrinsic

_TINY = 1e-30  # a group whose values are all smaller is 0: 127 / amax would overflow


def _largest(x: Expr) -> Expr:
    """max |x| over the lanes: the bits of non-negative floats order as integers."""
    bits = tirx.reinterpret(f"int32x{GROUP}", x) & tirx.const(0x7FFFFFFF, f"int32x{GROUP}")
    return tirx.reinterpret("float32", intrinsic("int32", "llvm.vector.reduce.smax", bits))


def _total(q: Expr) -> Expr:
    return intrinsic("int32", "llvm.vector.reduce.add", tirx.Cast(f"int32x{GROUP}", q))


def quantise(n: Extent, columns: int) -> tirx.PrimFunc:
    """x (1, n, columns) float32 -> q (n, G, 32) int8, scale (n, G) float32, total (n, G) int32.

    x ~ scale * q with scale = max |x| / 127 of the group, rounded to nearest even; total = sum of q. The last
    group is padded with zeros.
    """
    groups = pad(columns, GROUP) // GROUP

    @T.inline
    def group(values, g, token, q, scale, total):
        largest: T.let = _largest(values)
        inverse: T.let = T.Select(largest > T.float32(_TINY), T.float32(127) / largest, T.float32(0))
        rounded: T.let = T.cast(T.nearbyint(values * T.broadcast(inverse, GROUP)), f"int8x{GROUP}")
        q[token, g, T.ramp(0, 1, GROUP)] = rounded
        scale[token, g] = largest * T.float32(1 / 127)
        total[token, g] = _total(rounded)

    @T.prim_func(private=True, s_tir=True)
    def quantise(x_: T.handle, q_: T.handle, scale_: T.handle, total_: T.handle):
        T.func_attr({"tirx.noalias": True})
        x = T.match_buffer(x_, (1, n, columns), "float32")
        q = T.match_buffer(q_, (n, groups, GROUP), "int8")
        scale = T.match_buffer(scale_, (n, groups), "float32")
        total = T.match_buffer(total_, (n, groups), "int32")
        for token in T.parallel(n):
            for g in T.serial(columns // GROUP):
                group(x[0, token, T.ramp(g * GROUP, 1, GROUP)], g, token, q, scale, total)
            if columns % GROUP != 0:
                rest = T.alloc_buffer((GROUP,), "float32", scope="local")
                rest[T.ramp(0, 1, GROUP)] = T.broadcast(T.float32(0), GROUP)
                for i in T.serial(columns % GROUP):
                    rest[i] = x[0, token, columns // GROUP * GROUP + i]
                group(rest[T.ramp(0, 1, GROUP)], groups - 1, token, q, scale, total)

    return quantise
