"""Micro-kernels of matrix products: tiles of packed weights (ir.packing, kind `tiled`) times a block of tokens.

A block multiplies one or more tiles, of one matrix or of several with the same input, with a few tokens; its sums
stay in registers until the caller has written them. Sums run in a fixed order that depends neither on the block's
size nor on its place, so a token's result is the same alone and among others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd, prod

from tvm import tirx
from tvm.script.ir_builder import tirx as B

from llcompile.ir.graph import DTYPE_BYTES
from llcompile.lower.kernels.isa import STEPS, Group, Isa, take
from llcompile.lower.kernels.vector import Expr, Extent, local, vector_type

LINE = 64  # bytes that memory delivers at once

Tile = tuple[int, Expr]  # number of the matrix, number of the tile in it


@dataclass(frozen=True)
class Matrix:
    """Buffers of one packed weight. Float: data (tiles, columns, R), no scales. Quantised: data (tiles, G, loads, R)
    int32, words of 4 codes, and scales (tiles, G, R) float16."""

    data: tirx.Buffer
    scales: tirx.Buffer | None = None


@dataclass(frozen=True)
class Activations:
    """Quantised activations, as `quantise` makes them. words (n, G, 8) int32: 4 codes each; scale (n, G) float32;
    total (n, G) int32. pairs: of an instruction set that is `paired`, `pair_tokens` of several tokens."""

    words: tirx.Buffer
    scale: tirx.Buffer
    total: tirx.Buffer
    pairs: tirx.Buffer | None = None


@dataclass(frozen=True)
class Sums:
    """What a block has computed: products of `tile` (by place in its list) with `token` (from its first)."""

    acc: tirx.Buffer
    isa: Isa
    tiles: int

    def vector(self, tile: int, token: int, part: int) -> Expr:
        """Rows part * lanes .. of the tile: float32xL."""
        return self.acc[tirx.Ramp(self._start(tile, token) + part * self.isa.lanes, 1, self.isa.lanes)]

    def scalar(self, tile: int, token: int, row: int) -> Expr:
        return self.acc[self._start(tile, token) + row]

    def _start(self, tile: int, token: int) -> int:
        return (token * self.tiles + tile) * self.isa.rows


BlockProduct = Callable[[Sequence[Tile], Expr | int, int], Sums]  # (tiles, first token, number of tokens)


def over_tokens(size: int, n: Extent, body: Callable[[Expr | int, int], None]) -> None:
    """`body` of all tokens, in blocks of `size`; of half of it when there are fewer, and so on. The last block overlaps
    the one before it when n is no multiple of the size: a token is then computed twice, with the same result."""
    if isinstance(n, int):
        body(0, 1)
        return
    if size == 1:
        with B.serial(n) as m:
            body(m, 1)
        return
    with B.If(n < size):
        with B.Then():
            over_tokens(size // 2, n, body)
        with B.Else(), B.serial((n + (size - 1)) // size) as b:
            body(B.Bind(tirx.min(b * size, n - size)), size)


def pair_tokens(isa: Isa, words: tirx.Buffer, n: tirx.Var) -> tirx.Buffer:
    """words (n, G, 8) int32 in the order in which `over_tokens` takes them: block after block, in a block group after
    group, in a group two tokens after two: 8 features of one, the same of the other; then the next 8 (Group.eights)."""
    size, groups = isa.tokens, words.shape[1]
    pairs = B.alloc_buffer(((n + (size - 1)) // size * (groups * size * STEPS),), "int32")

    def lay(first: Expr | int, tokens: int) -> None:
        if tokens == 1:
            B.evaluate(0)
            return
        with B.serial(groups) as g:
            group = Group(words, words, g, first, tokens, pairs)
            for pair in range(tokens // 2):
                for i in range(STEPS // 2):
                    two = tirx.Ramp(2 * i, 1, 2)
                    both = [words[first + (2 * pair + odd), g, two] for odd in (0, 1)]
                    B.buffer_store(pairs, take(both, range(4)), [group.index(pair, i)])

    over_tokens(size, n, lay)
    return pairs


def float_block(isa: Isa, x: tirx.Buffer, matrices: Sequence[Matrix]) -> BlockProduct:
    """x (1, n, columns) float32; sums in float32, each in the order of the columns: several tiles at once, so that a
    sum need not wait for the one before."""
    lanes, parts, columns = isa.lanes, isa.parts, int(matrices[0].data.shape[1])
    stored = DTYPE_BYTES[str(matrices[0].data.dtype)]
    vector = vector_type("float32", lanes)
    unroll = gcd(columns, max(LINE // (isa.rows * stored), 1))  # what one line holds

    def block(tiles: Sequence[Tile], first: Expr | int, tokens: int) -> Sums:
        acc, ahead = _accumulators(tokens * len(tiles) * parts, lanes), isa.ahead(8 * stored, tokens)
        with B.serial(columns // unroll) as line:
            for number, t in tiles:
                _fetch(matrices[number].data, t, line * unroll, unroll, ahead)
            for k in range(unroll):
                _float_step(line * unroll + k, tiles, first, tokens, acc)
        return Sums(acc, isa, len(tiles))

    def _float_step(k: Expr, tiles: Sequence[Tile], first: Expr | int, tokens: int, acc: tirx.Buffer) -> None:
        weights = [
            B.Bind(tirx.Cast(vector, matrices[number].data[t, k, tirx.Ramp(p * lanes, 1, lanes)]))
            for number, t in tiles
            for p in range(parts)
        ]
        for m in range(tokens):
            each = B.Bind(tirx.Broadcast(x[0, first + m, k], lanes))
            for i, weight in enumerate(weights):
                _add(acc, (m * len(weights) + i) * lanes, weight * each, lanes)

    return block


def quantised_block(isa: Isa, bits: int, a: Activations, matrices: Sequence[Matrix]) -> BlockProduct:
    """Groups are multiplied exactly in integers and summed in float32."""
    lanes, parts, groups = isa.lanes, isa.parts, int(matrices[0].data.shape[1])
    vector = vector_type("float32", lanes)

    def block(tiles: Sequence[Tile], first: Expr | int, tokens: int) -> Sums:
        acc, ahead = _accumulators(tokens * len(tiles) * parts, lanes), isa.ahead(bits, tokens)
        vectors = [(i, p) for i in range(len(tiles)) for p in range(parts)]
        for together in [[pair] for pair in vectors] if isa.apart and tokens > 1 else [vectors]:
            with B.serial(groups) as g:
                for i, p in together:
                    number, t = tiles[i]
                    matrix = matrices[number]
                    assert matrix.scales is not None
                    if p == 0:
                        _fetch(matrix.data, t, g, 1, ahead)
                        _fetch(matrix.scales, t, g, 1, ahead // 4)
                    at = tirx.Ramp(p * lanes, 1, lanes)
                    words = [B.Bind(matrix.data[t, g, j, at]) for j in range(bits)]
                    weights = [B.Bind(w) for w in isa.unpack(bits, words, tokens)]
                    row_scale = B.Bind(tirx.Cast(vector, matrix.scales[t, g, at]))
                    group = Group(a.words, a.total, g, first, tokens, a.pairs)
                    for m, dot in enumerate(isa.dots(bits, weights, group)):
                        both = row_scale * tirx.Broadcast(a.scale[first + m, g], lanes)
                        _add(acc, ((m * len(tiles) + i) * parts + p) * lanes, dot * both, lanes)
        return Sums(acc, isa, len(tiles))

    return block


def _fetch(buffer: tirx.Buffer, t: Expr, step: Expr | int, steps: int, ahead: int) -> None:
    """Ask for the memory that lies `ahead` bytes after the steps step .. step + steps - 1 of tile t.

    Past the end of a tile lies the next one, and past the matrix whatever does: a fetch never faults.
    """
    width, inner = DTYPE_BYTES[str(buffer.dtype)], [0] * (len(buffer.shape) - 3)
    size = steps * width * prod(int(extent) for extent in buffer.shape[2:])
    read, often, data = (tirx.const(i, "int32") for i in (0, 3, 1))
    for byte in range(0, size if ahead else 0, LINE):
        line = tirx.address_of(buffer[(t, step, *inner, (ahead + byte) // width)])
        B.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch.p0", line, read, often, data))


def _accumulators(count: int, lanes: int) -> tirx.Buffer:
    acc = local((count * lanes,))
    zero = tirx.const(0.0, vector_type("float32", lanes))
    for i in range(count):
        B.buffer_store(acc, zero, [tirx.Ramp(i * lanes, 1, lanes)])
    return acc


def _add(acc: tirx.Buffer, start: int, value: Expr, lanes: int) -> None:
    at = tirx.Ramp(start, 1, lanes)
    B.buffer_store(acc, acc[at] + value, [at])
