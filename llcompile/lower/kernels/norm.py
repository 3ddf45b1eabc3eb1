"""Normalisation over the last dimension: RMSNorm and LayerNorm, float32, written as floats or in int8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as B

from llcompile.ir.packing import GROUP, pad
from llcompile.lower.kernels.quantise import quantise_group
from llcompile.lower.kernels.vector import Expr, add, local, rounded, run, same, splat, vector_type

CHAINS = 16


@dataclass(frozen=True)
class NormSpec:
    """`centred`: LayerNorm, else RMSNorm. `quantised`: what is written is what `quantise` makes of the result."""

    epsilon: float
    centred: bool
    quantised: bool


def norm(spec: NormSpec, rows: Expr | int, shape: tuple[Expr | int, ...]) -> tirx.PrimFunc:
    """x `shape` (`rows` rows of d), weight (d,) -> x / sqrt(mean x² + epsilon) * weight; centred: also bias (d,) ->
    (x - mean) / sqrt(variance + epsilon) * weight + bias, mean and variance in two passes over a row.

    The result: `shape` float32, or q (rows, G, 32) int8, scale (rows, G) float32 and total (rows, G) int32 for G
    groups of d. Sums run in CHAINS chains, on every processor.
    """
    d = int(shape[-1])
    with IRBuilder() as builder, B.prim_func(private=True, s_tir=True):
        B.func_attr({"tirx.noalias": True})
        x_shaped = B.arg("x", B.buffer(shape, "float32"))
        vectors = [B.arg(name, B.buffer((d,), "float32")) for name in ("weight", "bias")[: 1 + spec.centred]]
        written = _results(spec, rows, shape)
        x = B.decl_buffer((rows, d), "float32", data=x_shaped.data)
        if not spec.quantised:
            written = [B.decl_buffer((rows, d), "float32", data=written[0].data)]
        with B.parallel(tirx.const(0, "int64"), _long(rows)) as r:
            _row(spec, x, vectors, written, r)
    return builder.get()


def _results(spec: NormSpec, rows: Expr | int, shape: tuple[Expr | int, ...]) -> list[tirx.Buffer]:
    if not spec.quantised:
        return [B.arg("out", B.buffer(shape, "float32"))]
    groups = pad(int(shape[-1]), GROUP) // GROUP
    return [
        B.arg("q", B.buffer((rows, groups, GROUP), "int8")),
        B.arg("scale", B.buffer((rows, groups), "float32")),
        B.arg("total", B.buffer((rows, groups), "int32")),
    ]


def _row(
    spec: NormSpec, x: tirx.Buffer, vectors: list[tirx.Buffer], written: list[tirx.Buffer], r: Expr
) -> None:
    d = int(x.shape[1])
    width = gcd(d, CHAINS)
    mean = B.Bind(rounded(_mean(x, r, lambda v: v))) if spec.centred else None

    def centred(v: Expr, lanes: int) -> Expr:
        return v if mean is None else v - same(mean, lanes)

    squares = _mean(x, r, lambda v: _square(centred(v, width)))
    epsilon = tirx.const(spec.epsilon, "float32")
    factor = B.Bind(tirx.const(1.0, "float32") / tirx.sqrt(add(squares, epsilon)))

    def result(start: Expr | int, lanes: int) -> Expr:
        at = run(start, lanes)
        scaled = centred(x[r, at], lanes) * same(factor, lanes) * vectors[0][at]
        return scaled + vectors[1][at] if spec.centred else scaled

    if spec.quantised:
        _write_quantised(d, result, written, r)
        return
    with B.serial(d // width) as j:
        B.buffer_store(written[0], result(j * width, width), [r, run(j * width, width)])


def _square(v: Expr) -> Expr:
    v = B.Bind(v)
    return v * v


def _mean(x: tirx.Buffer, r: Expr, term: Callable[[Expr], Expr]) -> Expr:
    """The mean of `term` over row r, a product. Chains are added up by halves."""
    d = int(x.shape[1])
    width = gcd(d, CHAINS)
    sums = local((width,))
    B.buffer_store(sums, tirx.const(0.0, vector_type("float32", width)), [run(0, width)])
    with B.serial(d // width) as j:
        v = term(x[r, run(j * width, width)])
        B.buffer_store(sums, sums[run(0, width)] + v, [run(0, width)])
    while width > 1:
        width //= 2
        B.buffer_store(sums, sums[run(0, width)] + sums[run(width, width)], [run(0, width)])
    return sums[0] * tirx.const(1 / d, "float32")


def _write_quantised(
    d: int, result: Callable[[Expr | int, int], Expr], written: list[tirx.Buffer], r: Expr
) -> None:
    """The groups of row r; the last is padded with zeros."""
    whole = d // GROUP
    if whole:
        with B.serial(whole) as g:
            quantise_group(result(g * GROUP, GROUP), r, g, *written)
    if d % GROUP:
        rest = local((GROUP,))
        B.buffer_store(rest, splat(0.0, rest[run(0, GROUP)]), [run(0, GROUP)])
        with B.serial(d % GROUP) as i:
            B.buffer_store(rest, result(whole * GROUP + i, 1), [i])
        quantise_group(rest[run(0, GROUP)], r, whole, *written)


def _long(extent: Expr | int) -> Expr:
    return tirx.const(extent, "int64") if isinstance(extent, int) else extent
