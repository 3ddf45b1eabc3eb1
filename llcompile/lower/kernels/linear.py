# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-calls=False, disallow-untyped-decorators=False
# TVMScript looks like Python but is parsed by the compiler, which knows its own types.
"""Matrix products y = x Wᵀ with packed weights (ir.packing, kind `tiled`), for one token and for blocks of them.

A tile of weight rows is one parallel task; it multiplies all tokens, in blocks whose accumulators stay in
registers, while the tile stays in the cache. The last block of a prefill overlaps the one before it when n is
no multiple of the block: a token's sum does not depend on its block, so it is written twice with the same
value. Sums run in a fixed order.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from llcompile.ir.packing import GROUP, pad
from llcompile.lower.kernels.isa import STEPS, Isa
from llcompile.lower.kernels.vector import Expr, Extent


@T.inline
def store_tile(out, acc, t, first, tokens, chains, rows, tile, lanes, whole):
    """Write the accumulators (token, chain 0, row) of tile `t`; of the last tile only the rows there are."""
    if rows % tile == 0:
        for m in T.unroll(tokens):
            for p in T.unroll(tile // lanes):
                out[0, first + m, T.ramp(t * tile + p * lanes, 1, lanes)] = acc[
                    T.ramp(m * chains * tile + p * lanes, 1, lanes)
                ]
    else:
        if t < whole:
            for m in T.unroll(tokens):
                for p in T.unroll(tile // lanes):
                    out[0, first + m, T.ramp(t * tile + p * lanes, 1, lanes)] = acc[
                        T.ramp(m * chains * tile + p * lanes, 1, lanes)
                    ]
        else:
            for m in T.unroll(tokens):
                for r in T.unroll(rows - whole * tile):
                    out[0, first + m, whole * tile + r] = acc[m * chains * tile + r]


def linear_float(isa: Isa, dtype: str, n: Extent, columns: int, rows: int) -> tirx.PrimFunc:
    """x (1, n, columns) float32, data (tiles, columns, R) `dtype` -> (1, n, rows) float32; sums in float32."""
    tile, lanes, parts, block = isa.rows, isa.lanes, isa.parts, isa.tokens
    tiles, whole = pad(rows, tile) // tile, rows // tile
    chains = next(c for c in (4, 2, 1) if columns % c == 0)
    vector = f"float32x{lanes}"

    @T.inline
    def accumulate(x, data, out, t, first, tokens, chains):
        acc = T.alloc_buffer((tokens * chains * parts * lanes,), "float32", scope="local")
        for i in T.unroll(tokens * chains * parts):
            acc[T.ramp(i * lanes, 1, lanes)] = T.broadcast(T.float32(0), lanes)
        for k in T.serial(columns // chains):
            for c in T.unroll(chains):
                for p in T.unroll(parts):
                    w = T.cast(data[t, k * chains + c, T.ramp(p * lanes, 1, lanes)], vector)
                    for m in T.unroll(tokens):
                        at = T.meta_var(T.ramp(((m * chains + c) * parts + p) * lanes, 1, lanes))
                        acc[at] = acc[at] + w * T.broadcast(x[0, first + m, k * chains + c], lanes)
        for m in T.unroll(tokens):
            for c in T.unroll(chains - 1):
                for p in T.unroll(parts):
                    at = T.meta_var(T.ramp((m * chains * parts + p) * lanes, 1, lanes))
                    acc[at] = acc[at] + acc[T.ramp(((m * chains + c + 1) * parts + p) * lanes, 1, lanes)]
        store_tile(out, acc, t, first, tokens, chains, rows, tile, lanes, whole)

    @T.prim_func(private=True, s_tir=True)
    def linear(x_: T.handle, data_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True})
        x = T.match_buffer(x_, (1, n, columns), "float32")
        data = T.match_buffer(data_, (tiles, columns, tile), dtype)
        out = T.match_buffer(out_, (1, n, rows), "float32")
        for t in T.parallel(tiles):
            if isinstance(n, int):
                accumulate(x, data, out, t, 0, 1, chains)
            else:
                if n < block:
                    for m in T.serial(n):
                        accumulate(x, data, out, t, m, 1, chains)
                else:
                    for b in T.serial((n + (block - 1)) // block):
                        first = T.min(b * block, n - block)
                        accumulate(x, data, out, t, first, block, 1)

    return linear


def linear_quantised(isa: Isa, bits: int, n: Extent, columns: int, rows: int) -> tirx.PrimFunc:
    """Quantised activations times quantised weights.

    q (n, G, 32) int8, scale (n, G) float32, total (n, G) int32 as `quantise` makes them (G = groups of
    columns), data and scales as ir.packing says for q8 (bits = 8) or q4 (bits = 4) -> (1, n, rows) float32.
    Groups are multiplied exactly in integers and summed in float32.
    """
    tile, lanes, parts, block = isa.rows, isa.lanes, isa.parts, isa.tokens
    tiles, whole = pad(rows, tile) // tile, rows // tile
    groups = pad(columns, GROUP) // GROUP
    loads = STEPS if bits == 8 else STEPS // 2
    vector, integers = f"float32x{lanes}", f"int32x{lanes}"
    nibbles = tirx.const(0x0F0F0F0F, integers)
    four = tirx.const(4, integers)

    def group_dot(planes: tirx.Buffer, words: tirx.Buffer, token: Expr, g: Expr, p: int, total: Expr) -> Expr:
        def weights(s: int) -> Expr:
            return planes[tirx.Ramp((s * parts + p) * lanes, 1, lanes)]

        return isa.dot(bits, weights, lambda s: words[token, g, s], total)

    @T.inline
    def unpack(planes, words, t, g):
        for j in T.unroll(loads):
            for p in T.unroll(parts):
                word = words[t, g, j, T.ramp(p * lanes, 1, lanes)]
                if bits == 8:
                    planes[T.ramp((j * parts + p) * lanes, 1, lanes)] = isa.prepare(word, 8)
                else:
                    planes[T.ramp((2 * j * parts + p) * lanes, 1, lanes)] = word & nibbles
                    planes[T.ramp(((2 * j + 1) * parts + p) * lanes, 1, lanes)] = (word >> four) & nibbles

    @T.inline
    def accumulate(a, scale, total, w, scales, out, t, first, tokens):
        acc = T.alloc_buffer((tokens * parts * lanes,), "float32", scope="local")
        planes = T.alloc_buffer((STEPS * parts * lanes,), "int32", scope="local")
        for i in T.unroll(tokens * parts):
            acc[T.ramp(i * lanes, 1, lanes)] = T.broadcast(T.float32(0), lanes)
        for g in T.serial(groups):
            unpack(planes, w, t, g)
            for p in T.unroll(parts):
                factor = T.cast(scales[t, g, T.ramp(p * lanes, 1, lanes)], vector)
                for m in T.unroll(tokens):
                    at = T.meta_var(T.ramp((m * parts + p) * lanes, 1, lanes))
                    dot = T.meta_var(group_dot(planes, a, first + m, g, p, total[first + m, g]))
                    acc[at] = acc[at] + T.cast(dot, vector) * (
                        factor * T.broadcast(scale[first + m, g], lanes)
                    )
        store_tile(out, acc, t, first, tokens, 1, rows, tile, lanes, whole)

    @T.prim_func(private=True, s_tir=True)
    def linear(
        q_: T.handle, scale_: T.handle, total_: T.handle, data_: T.handle, scales_: T.handle, out_: T.handle
    ):
        T.func_attr({"tirx.noalias": True})
        q = T.match_buffer(q_, (n, groups, GROUP), "int8")
        scale = T.match_buffer(scale_, (n, groups), "float32")
        total = T.match_buffer(total_, (n, groups), "int32")
        data = T.match_buffer(data_, (tiles, groups, loads, tile, 4), "int8" if bits == 8 else "uint8")
        scales = T.match_buffer(scales_, (tiles, groups, tile), "float16")
        out = T.match_buffer(out_, (1, n, rows), "float32")
        a = T.decl_buffer((n, groups, STEPS), "int32", data=q.data)
        w = T.decl_buffer((tiles, groups, loads, tile), "int32", data=data.data)
        for t in T.parallel(tiles):
            if isinstance(n, int):
                accumulate(a, scale, total, w, scales, out, t, 0, 1)
            else:
                if n < block:
                    for m in T.serial(n):
                        accumulate(a, scale, total, w, scales, out, t, m, 1)
                else:
                    for b in T.serial((n + (block - 1)) // block):
                        first = T.min(b * block, n - block)
                        accumulate(a, scale, total, w, scales, out, t, first, block)

    return linear
