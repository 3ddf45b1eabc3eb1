# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# TVMScript looks like Python but is parsed by the compiler, which knows its own types.
"""Matrix products y = x Wᵀ with packed weights (ir.packing, kind `tiled`), for one token and for blocks of them.

A tile of weight rows is one parallel task; it multiplies all tokens, in blocks whose accumulators stay in
registers, while the tile stays in the cache.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T
from tvm.script.ir_builder import tirx as B

from llcompile.ir.packing import GROUP, pad
from llcompile.lower.kernels.blocks import (
    Activations,
    Block,
    Matrix,
    Sums,
    float_block,
    over_tokens,
    quantised_block,
)
from llcompile.lower.kernels.isa import STEPS, Isa
from llcompile.lower.kernels.vector import Expr, Extent


def linear_float(isa: Isa, dtype: str, n: Extent, columns: int, rows: int) -> tirx.PrimFunc:
    """x (1, n, columns) float32, data (tiles, columns, R) `dtype` -> (1, n, rows) float32; sums in float32."""
    tiles = pad(rows, isa.rows) // isa.rows

    @T.prim_func(private=True, s_tir=True)
    def linear(x_: T.handle, data_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True})
        x = T.match_buffer(x_, (1, n, columns), "float32")
        data = T.match_buffer(data_, (tiles, columns, isa.rows), dtype)
        out = T.match_buffer(out_, (1, n, rows), "float32")
        for t in T.parallel(tiles):
            multiply_tile(isa, isa.float_tokens, n, float_block(isa, x, [Matrix(data)]), out, t)

    return linear


def linear_quantised(isa: Isa, bits: int, n: Extent, columns: int, rows: int) -> tirx.PrimFunc:
    """Quantised activations times quantised weights.

    q (n, G, 32) int8, scale (n, G) float32, total (n, G) int32 as `quantise` makes them (G = groups of
    columns), data and scales as ir.packing says for q8 (bits = 8) or q4 (bits = 4) -> (1, n, rows) float32.
    """
    tiles, groups = pad(rows, isa.rows) // isa.rows, pad(columns, GROUP) // GROUP
    loads = STEPS * bits // 8

    @T.prim_func(private=True, s_tir=True)
    def linear(
        q_: T.handle, scale_: T.handle, total_: T.handle, data_: T.handle, scales_: T.handle, out_: T.handle
    ):
        T.func_attr({"tirx.noalias": True})
        q = T.match_buffer(q_, (n, groups, GROUP), "int8")
        scale = T.match_buffer(scale_, (n, groups), "float32")
        total = T.match_buffer(total_, (n, groups), "int32")
        data = T.match_buffer(data_, (tiles, groups, loads, isa.rows, 4), "int8" if bits == 8 else "uint8")
        scales = T.match_buffer(scales_, (tiles, groups, isa.rows), "float16")
        out = T.match_buffer(out_, (1, n, rows), "float32")
        a = T.decl_buffer((n, groups, STEPS), "int32", data=q.data)
        w = T.decl_buffer((tiles, groups, loads, isa.rows), "int32", data=data.data)
        for t in T.parallel(tiles):
            multiply_tile(
                isa,
                isa.tokens,
                n,
                quantised_block(isa, bits, Activations(a, scale, total), [Matrix(w, scales)]),
                out,
                t,
            )

    return linear


def multiply_tile(isa: Isa, size: int, n: Extent, block: Block, out: tirx.Buffer, t: Expr) -> None:
    """Tile t of matrix 0 times all tokens, in blocks of `size`."""

    def body(first: Expr | int, tokens: int) -> None:
        _store_tile(isa, out, block([(0, t)], first, tokens), t, first, tokens)

    over_tokens(size, n, body)


def _store_tile(isa: Isa, out: tirx.Buffer, sums: Sums, t: Expr, first: Expr | int, tokens: int) -> None:
    """Write the sums of tile t; of the last tile only the rows there are."""
    rows, tile, lanes = int(out.shape[2]), isa.rows, isa.lanes

    def whole() -> None:
        for m in range(tokens):
            for p in range(isa.parts):
                place = [0, first + m, tirx.Ramp(t * tile + p * lanes, 1, lanes)]
                B.buffer_store(out, sums.vector(0, m, p), place)

    if rows % tile == 0:
        whole()
        return
    with B.If(t < rows // tile):
        with B.Then():
            whole()
        with B.Else():
            for m in range(tokens):
                for r in range(rows % tile):
                    B.buffer_store(out, sums.scalar(0, m, r), [0, first + m, rows // tile * tile + r])
