# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-calls=False, disallow-untyped-decorators=False
# TVMScript looks like Python but is parsed by the compiler, which knows its own types.
"""Normalisation over the last dimension: RMSNorm and LayerNorm, float32."""

from __future__ import annotations

from math import gcd

from tvm import tirx
from tvm.script import tirx as T

from llcompile.lower.kernels.vector import Expr, local, run, same


def rms_norm(lanes: int, rows: Expr | int, shape: tuple[Expr | int, ...], epsilon: float) -> tirx.PrimFunc:
    """x `shape` (`rows` rows of d), weight (d,) -> x / sqrt(mean x² + epsilon) * weight.

    The sum runs in `lanes` chains.
    """
    d = int(shape[-1])
    width = gcd(d, lanes)

    @T.prim_func(private=True, s_tir=True)
    def rms_norm(x_: T.handle, weight_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True})
        x_shaped = T.match_buffer(x_, shape, "float32")
        weight = T.match_buffer(weight_, (d,), "float32")
        out_shaped = T.match_buffer(out_, shape, "float32")
        x = T.decl_buffer((rows, d), "float32", data=x_shaped.data)
        out = T.decl_buffer((rows, d), "float32", data=out_shaped.data)
        for r in T.parallel(rows):
            squares = local((1,))
            sums = local((width,))
            sums[run(0, width)] = same(T.float32(0), width)
            for j in T.serial(d // width):
                v: T.let = x[r, run(j * width, width)]
                sums[run(0, width)] = sums[run(0, width)] + v * v
            squares[0] = T.float32(0)
            for j in T.serial(width):
                squares[0] = squares[0] + sums[j]
            factor: T.let = T.float32(1) / T.sqrt(squares[0] * T.float32(1 / d) + T.float32(epsilon))
            for j in T.serial(d):
                out[r, j] = x[r, j] * factor * weight[j]

    return rms_norm


def layer_norm(lanes: int, rows: Expr | int, shape: tuple[Expr | int, ...], epsilon: float) -> tirx.PrimFunc:
    """x `shape` (`rows` rows of d), weight, bias (d,) -> (x - mean) / sqrt(variance + epsilon) * weight + bias.

    Mean and variance take two passes over a row, each summed in `lanes` chains.
    """
    d = int(shape[-1])
    width = gcd(d, lanes)

    @T.prim_func(private=True, s_tir=True)
    def layer_norm(x_: T.handle, weight_: T.handle, bias_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True})
        x_shaped = T.match_buffer(x_, shape, "float32")
        weight = T.match_buffer(weight_, (d,), "float32")
        bias = T.match_buffer(bias_, (d,), "float32")
        out_shaped = T.match_buffer(out_, shape, "float32")
        x = T.decl_buffer((rows, d), "float32", data=x_shaped.data)
        out = T.decl_buffer((rows, d), "float32", data=out_shaped.data)
        for r in T.parallel(rows):
            total = local((2,))
            sums = local((width,))
            sums[run(0, width)] = same(T.float32(0), width)
            for j in T.serial(d // width):
                sums[run(0, width)] = sums[run(0, width)] + x[r, run(j * width, width)]
            total[0] = T.float32(0)
            for j in T.serial(width):
                total[0] = total[0] + sums[j]
            mean: T.let = total[0] * T.float32(1 / d)
            sums[run(0, width)] = same(T.float32(0), width)
            for j in T.serial(d // width):
                v: T.let = x[r, run(j * width, width)] - same(mean, width)
                sums[run(0, width)] = sums[run(0, width)] + v * v
            total[1] = T.float32(0)
            for j in T.serial(width):
                total[1] = total[1] + sums[j]
            factor: T.let = T.float32(1) / T.sqrt(total[1] * T.float32(1 / d) + T.float32(epsilon))
            for j in T.serial(d):
                out[r, j] = (x[r, j] - mean) * factor * weight[j] + bias[j]

    return layer_norm
