# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# TVMScript looks like Python but is parsed by the compiler, which knows its own types.
"""Matrix products y = x Wᵀ with packed weights (ir.packing, kind `tiled`), for one token and for blocks of them.

A tile of weight rows is one parallel task; it multiplies all tokens, in blocks whose accumulators stay in
registers, while the tile stays in the cache. The last block of a prefill overlaps the one before it when n is
no multiple of the block: a token's sum does not depend on its block, so it is written twice with the same
value. Sums run in a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.script import tirx as T
from tvm.script.ir_builder import tirx as B

from llcompile.ir.packing import GROUP, pad
from llcompile.lower.kernels.isa import STEPS, Isa
from llcompile.lower.kernels.vector import Expr, Extent, splat, vector_type

Block = Callable[[Expr, Expr | int, int], None]  # multiplies tile t with tokens first..first + count - 1


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
            over_tokens(isa.float_tokens, n, t, float_block(isa, x, data, out))

    return linear


def linear_quantised(isa: Isa, bits: int, n: Extent, columns: int, rows: int) -> tirx.PrimFunc:
    """Quantised activations times quantised weights.

    q (n, G, 32) int8, scale (n, G) float32, total (n, G) int32 as `quantise` makes them (G = groups of
    columns), data and scales as ir.packing says for q8 (bits = 8) or q4 (bits = 4) -> (1, n, rows) float32.
    Groups are multiplied exactly in integers and summed in float32.
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
            over_tokens(isa.tokens, n, t, quantised_block(isa, bits, a, scale, total, w, scales, out))

    return linear


def over_tokens(size: int, n: Extent, t: Expr, block: Block) -> None:
    """All tokens, in blocks of `size`; one by one when there are fewer."""
    if isinstance(n, int):
        block(t, 0, 1)
        return
    with B.If(n < size):
        with B.Then(), B.serial(n) as m:
            block(t, m, 1)
        with B.Else(), B.serial((n + (size - 1)) // size) as b:
            block(t, B.Bind(tirx.min(b * size, n - size)), size)


def float_block(isa: Isa, x: tirx.Buffer, data: tirx.Buffer, out: tirx.Buffer) -> Block:
    lanes, parts, columns = isa.lanes, isa.parts, int(data.shape[1])
    vector = vector_type("float32", lanes)

    def block(t: Expr, first: Expr | int, tokens: int) -> None:
        # One token alone: several sums side by side, or every step would wait for the one before.
        chains = next(c for c in (4, 2, 1) if columns % c == 0) if tokens == 1 else 1
        acc = _accumulators(tokens * chains * parts, lanes)
        with B.serial(columns // chains) as k:
            for c in range(chains):
                for p in range(parts):
                    w = B.Bind(tirx.Cast(vector, data[t, k * chains + c, tirx.Ramp(p * lanes, 1, lanes)]))
                    for m in range(tokens):
                        each = tirx.Broadcast(x[0, first + m, k * chains + c], lanes)
                        _add(acc, ((m * chains + c) * parts + p) * lanes, w * each, lanes)
        for m in range(tokens):
            for c in range(1, chains):
                for p in range(parts):
                    other = acc[tirx.Ramp(((m * chains + c) * parts + p) * lanes, 1, lanes)]
                    _add(acc, (m * chains * parts + p) * lanes, other, lanes)
        _store_tile(isa, out, acc, t, first, tokens, chains)

    return block


def quantised_block(
    isa: Isa,
    bits: int,
    a: tirx.Buffer,
    scale: tirx.Buffer,
    total: tirx.Buffer,
    w: tirx.Buffer,
    scales: tirx.Buffer,
    out: tirx.Buffer,
) -> Block:
    """`a`, `w`: activations and weights as words of 4 codes."""
    lanes, parts, groups = isa.lanes, isa.parts, int(scales.shape[1])

    vector = vector_type("float32", lanes)

    def block(t: Expr, first: Expr | int, tokens: int) -> None:
        acc = _accumulators(tokens * parts, lanes)
        with B.serial(groups) as g:
            for p in range(parts):
                weights = _planes(isa, bits, w, t, g, p)
                row_scale = B.Bind(tirx.Cast(vector, scales[t, g, tirx.Ramp(p * lanes, 1, lanes)]))
                for m in range(tokens):
                    token = first + m
                    words = [a[token, g, s] for s in range(STEPS)]
                    dot = isa.dot(bits, weights, words, total[token, g])
                    both = row_scale * tirx.Broadcast(scale[token, g], lanes)
                    _add(acc, (m * parts + p) * lanes, tirx.Cast(vector, dot) * both, lanes)
        _store_tile(isa, out, acc, t, first, tokens, 1)

    return block


def _planes(isa: Isa, bits: int, w: tirx.Buffer, t: Expr, g: Expr, p: int) -> list[Expr]:
    """The 8 steps of a group, 4 codes a row, of part p of a tile: what all tokens share, computed once."""
    at = tirx.Ramp(p * isa.lanes, 1, isa.lanes)
    words = [B.Bind(w[t, g, j, at]) for j in range(STEPS * bits // 8)]
    if bits == 8:
        return [B.Bind(isa.prepare(word)) for word in words]
    nibbles, four = splat(0x0F0F0F0F, words[0]), splat(4, words[0])
    return [B.Bind(half & nibbles) for word in words for half in (word, word >> four)]


def _accumulators(count: int, lanes: int) -> tirx.Buffer:
    acc = B.alloc_buffer((count * lanes,), "float32", scope="local")
    zero = tirx.const(0.0, vector_type("float32", lanes))
    for i in range(count):
        B.buffer_store(acc, zero, [tirx.Ramp(i * lanes, 1, lanes)])
    return acc


def _add(acc: tirx.Buffer, start: int, value: Expr, lanes: int) -> None:
    at = tirx.Ramp(start, 1, lanes)
    B.buffer_store(acc, acc[at] + value, [at])


def _store_tile(
    isa: Isa, out: tirx.Buffer, acc: tirx.Buffer, t: Expr, first: Expr | int, tokens: int, chains: int
) -> None:
    """Write the accumulators (token, chain 0, row) of tile t; of the last tile only the rows there are."""
    rows, tile, lanes = int(out.shape[2]), isa.rows, isa.lanes

    def whole() -> None:
        for m in range(tokens):
            for p in range(isa.parts):
                value = acc[tirx.Ramp(m * chains * tile + p * lanes, 1, lanes)]
                B.buffer_store(out, value, [0, first + m, tirx.Ramp(t * tile + p * lanes, 1, lanes)])

    if rows % tile == 0:
        whole()
        return
    with B.If(t < rows // tile):
        with B.Then():
            whole()
        with B.Else():
            for m in range(tokens):
                for r in range(rows % tile):
                    B.buffer_store(out, acc[m * chains * tile + r], [0, first + m, rows // tile * tile + r])
