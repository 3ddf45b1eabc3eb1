# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# TVMScript looks like Python but is parsed by the compiler, which knows its own types.
"""Activations to int8, in groups of 32 along the features."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T
from tvm.script.ir_builder import tirx as B

from llcompile.ir.packing import GROUP, pad
from llcompile.lower.kernels.vector import Expr, Extent, intrinsic, local

_TINY = 1e-30  # a group whose values are all smaller is 0: 127 / largest would overflow


def quantise(n: Extent, columns: int) -> tirx.PrimFunc:
    """x (1, n, columns) float32 -> q (n, G, 32) int8, scale (n, G) float32, total (n, G) int32.

    x ~ scale * q with scale = max |x| / 127 of the group, rounded to nearest even; total = sum of q. The last
    group is padded with zeros.
    """
    whole, groups = columns // GROUP, pad(columns, GROUP) // GROUP

    @T.prim_func(private=True, s_tir=True)
    def quantise(x_: T.handle, q_: T.handle, scale_: T.handle, total_: T.handle):
        T.func_attr({"tirx.noalias": True})
        x = T.match_buffer(x_, (1, n, columns), "float32")
        q = T.match_buffer(q_, (n, groups, GROUP), "int8")
        scale = T.match_buffer(scale_, (n, groups), "float32")
        total = T.match_buffer(total_, (n, groups), "int32")
        for token in T.parallel(n):
            for g in T.serial(whole):
                quantise_group(x[0, token, T.ramp(g * GROUP, 1, GROUP)], token, g, q, scale, total)
            if whole < groups:
                rest = local((GROUP,))
                rest[T.ramp(0, 1, GROUP)] = T.broadcast(T.float32(0), GROUP)
                for i in T.serial(columns - whole * GROUP):
                    rest[i] = x[0, token, whole * GROUP + i]
                quantise_group(rest[T.ramp(0, 1, GROUP)], token, whole, q, scale, total)

    return quantise


def quantise_group(
    values: Expr, token: Expr, g: Expr | int, q: tirx.Buffer, scale: tirx.Buffer, total: tirx.Buffer
) -> None:
    """Write one group: 32 values in one vector, which the compiler splits to the machine's width."""
    values = B.Bind(values)
    largest = B.Bind(_largest(values))
    limit, zero = tirx.const(127.0, "float32"), tirx.const(0.0, "float32")
    inverse = B.Bind(tirx.Select(largest > tirx.const(_TINY, "float32"), limit / largest, zero))
    rounded = tirx.nearbyint(values * tirx.Broadcast(inverse, GROUP))
    codes = B.Bind(tirx.Cast(f"int8x{GROUP}", rounded))
    B.buffer_store(q, codes, [token, g, tirx.Ramp(0, 1, GROUP)])
    B.buffer_store(scale, largest * tirx.const(1 / 127, "float32"), [token, g])
    wide = tirx.Cast(f"int32x{GROUP}", codes)
    B.buffer_store(total, intrinsic("int32", "llvm.vector.reduce.add", wide), [token, g])


def _largest(x: Expr) -> Expr:
    """max |x| over the lanes: the bits of non-negative floats order as integers."""
    bits = tirx.reinterpret(f"int32x{GROUP}", x) & tirx.const(0x7FFFFFFF, f"int32x{GROUP}")
    return tirx.reinterpret("float32", intrinsic("int32", "llvm.vector.reduce.smax", bits))
