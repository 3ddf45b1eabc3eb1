# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# TVMScript looks like Python but is parsed by the compiler, which knows its own types.
"""Attention over a cache that is appended to in place.

Work is cut into (key-value head, block of up to 8 query rows): a row is one query head of one new token, and the
rows of a block share every key and value they read. Keys are taken 16 at a time with a running maximum and sum
(online softmax: Milakov and Gimelshein, arXiv 1805.02867), so scratch memory does not grow with the context, and
only the tokens that are there are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from tvm import tirx
from tvm.script import tirx as T
from tvm.script.ir_builder import tirx as B

from llcompile.lower.kernels.vector import Expr, Extent, exp, intrinsic, run, same, splat, tanh, vector_type

KEYS = 16  # keys taken at once
ROWS = 8  # most query rows in a block
_NONE = -1e30  # a score below every real one; finite, so that differences of two are no NaN


@dataclass(frozen=True)
class AttentionSpec:
    """Attributes of an llcompile.Attention node and the shapes around it."""

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    context: int
    cache_dtype: str
    scale: float
    window: int
    softcap: float
    alibi: bool

    @property
    def group(self) -> int:
        """Query heads that share a key-value head."""
        return self.heads // self.kv_heads

    @property
    def reach(self) -> int:
        """Tokens that a query looks back over, itself included."""
        return self.window or self.context + 1


def append_row(
    cache: tirx.Buffer, new: tirx.Buffer, slot: Expr, h: Expr, place: Expr, i: Expr, lanes: int
) -> None:
    """cache[slot, h, place] = new[0, h, i]"""
    width = int(cache.shape[3])
    wide = gcd(width, lanes)
    with B.serial(width // wide) as j:
        value = tirx.Cast(vector_type(cache.dtype, wide), new[0, h, i, run(j * wide, wide)])
        B.buffer_store(cache, value, [slot, h, place, run(j * wide, wide)])


def score_keys(
    query: tirx.Buffer,
    keys: tirx.Buffer,
    scores: tirx.Buffer,
    slot: Expr,
    h: Expr,
    base: Expr,
    stop: Expr,
    lanes: int,
) -> None:
    """scores[r, t] = query row r . key base + t; of keys past the end, the last one's."""
    block, d = (int(extent) for extent in query.shape)
    wide = gcd(d, lanes)
    products = B.alloc_buffer((block, KEYS, wide), "float32", scope="local")
    with B.serial(KEYS) as t:
        at = B.Bind(tirx.min(base + t, stop - 1))
        sums = _zeros(block, wide)
        with B.serial(d // wide) as j:
            key = B.Bind(tirx.Cast(vector_type("float32", wide), keys[slot, h, at, run(j * wide, wide)]))
            for r in range(block):
                product = key * query[r, run(j * wide, wide)]
                B.buffer_store(sums, sums[r, run(0, wide)] + product, [r, run(0, wide)])
        for r in range(block):
            B.buffer_store(products, sums[r, run(0, wide)], [r, t, run(0, wide)])
    with B.serial(block) as r:
        for part in range(0, KEYS, wide):
            vectors = [B.Bind(products[r, part + t, run(0, wide)]) for t in range(wide)]
            B.buffer_store(scores, _fold(vectors, wide), [r, run(part, wide)])


def _fold(vectors: list[Expr], lanes: int) -> Expr:
    """The sums of the lanes of each of `lanes` vectors, as one vector: each step adds neighbouring lanes of two
    vectors and so halves their number."""
    even = [tirx.const(i, "int32") for i in range(0, 2 * lanes, 2)]
    odd = [tirx.const(i, "int32") for i in range(1, 2 * lanes, 2)]
    while len(vectors) > 1:
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [B.Bind(tirx.Shuffle([a, b], even) + tirx.Shuffle([a, b], odd)) for a, b in pairs]
    return vectors[0]


def weigh_keys(
    scores: tirx.Buffer,
    peak: tirx.Buffer,
    sums: tirx.Buffer,
    shrink: tirx.Buffer,
    slope: Expr,
    r: Expr,
    base: Expr,
    position: Expr,
    spec: AttentionSpec,
) -> None:
    """Scores of row r become weights e**(score - peak); `shrink`: what sums over earlier keys are scaled by."""
    row = tirx.Ramp(0, 1, KEYS)
    score = B.Bind(_capped(scores[r, row], spec.softcap))
    ahead = same(tirx.Cast("int32", base - position), KEYS) + row  # the keys' positions less the query's
    seen = tirx.And(ahead <= splat(0, ahead), ahead > splat(-spec.reach, ahead))
    if spec.alibi:
        score = score + same(slope, KEYS) * tirx.Cast(vector_type("float32", KEYS), ahead)
    score = B.Bind(tirx.Select(seen, score, splat(_NONE, score)))
    top = B.Bind(tirx.max(peak[r], intrinsic("float32", "llvm.vector.reduce.fmax", score)))
    weight = B.Bind(tirx.Select(seen, exp(score - same(top, KEYS)), splat(0.0, score)))
    factor = B.Bind(exp(peak[r] - top))
    B.buffer_store(scores, weight, [r, row])
    B.buffer_store(sums, sums[r, row] * same(factor, KEYS) + weight, [r, row])
    B.buffer_store(shrink, factor, [r])
    B.buffer_store(peak, top, [r])


def add_values(
    mixed: tirx.Buffer,
    weights: tirx.Buffer,
    shrink: tirx.Buffer,
    values: tirx.Buffer,
    slot: Expr,
    h: Expr,
    base: Expr,
    stop: Expr,
    lanes: int,
) -> None:
    """mixed[r] = shrink[r] * mixed[r] + the values of 16 keys under their weights."""
    block, dv = (int(extent) for extent in mixed.shape)
    wide = gcd(dv, lanes)
    row = run(0, wide)
    with B.serial(dv // wide) as j:
        acc = B.alloc_buffer((block, wide), "float32", scope="local")
        for r in range(block):
            B.buffer_store(acc, mixed[r, run(j * wide, wide)] * same(shrink[r], wide), [r, row])
        with B.serial(KEYS) as t:
            at = B.Bind(tirx.min(base + t, stop - 1))
            value = B.Bind(tirx.Cast(vector_type("float32", wide), values[slot, h, at, run(j * wide, wide)]))
            for r in range(block):
                B.buffer_store(acc, acc[r, row] + value * same(weights[r, t], wide), [r, row])
        for r in range(block):
            B.buffer_store(mixed, acc[r, row], [r, run(j * wide, wide)])


def total(vector: Expr) -> Expr:
    return intrinsic("float32", "llvm.vector.reduce.fadd", tirx.const(-0.0, "float32"), vector)


def _zeros(rows: int, lanes: int) -> tirx.Buffer:
    buffer = B.alloc_buffer((rows, lanes), "float32", scope="local")
    for r in range(rows):
        B.buffer_store(buffer, tirx.const(0.0, vector_type("float32", lanes)), [r, run(0, lanes)])
    return buffer


def _capped(score: Expr, cap: float) -> Expr:
    """cap * tanh(score / cap); cap 0: no cap."""
    return tanh(score * splat(1 / cap, score)) * splat(cap, score) if cap else score


def attention(lanes: int, n: Extent, spec: AttentionSpec, apart: bool) -> tirx.PrimFunc:
    """q (1, H, n, d), k (1, Hkv, n, d), v (1, Hkv, n, dv), position_ids (1, n), slopes (H,) ((1,), not read, without
    ALiBi), slots (n,) or (1,), keys (S, Hkv, context, d) and values (S, Hkv, context, dv) updated in place
    -> (1, H, n, dv).

    `apart`: every token is of a sequence of its own, token i at position_ids[0, i] in slots[i]; otherwise all are
    of the one in slots[0], appended at position_ids[0, 0]. The query at position p sees positions
    max(0, p - window + 1)..p of its slot.
    """
    heads, kv_heads, context, group, d, dv = (
        spec.heads, spec.kv_heads, spec.context, spec.group, spec.key_dim, spec.value_dim,
    )  # fmt: skip
    block = min(group, ROWS) if apart else ROWS
    sequences = n if apart else 1
    rows = group if apart else n * group  # of a sequence and a key-value head
    blocks = (rows + (block - 1)) // block
    capacity = tirx.Var("capacity", "int64")

    @T.prim_func(private=True, s_tir=True)
    def attention(
        q_: T.handle,
        k_: T.handle,
        v_: T.handle,
        position_: T.handle,
        slopes_: T.handle,
        slots_: T.handle,
        keys_: T.handle,
        values_: T.handle,
        out_: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        q = T.match_buffer(q_, (1, heads, n, d), "float32")
        k = T.match_buffer(k_, (1, kv_heads, n, d), "float32")
        v = T.match_buffer(v_, (1, kv_heads, n, dv), "float32")
        position = T.match_buffer(position_, (1, n), "int64")
        slopes = T.match_buffer(slopes_, (heads if spec.alibi else 1,), "float32")
        slots = T.match_buffer(slots_, (sequences,), "int64")
        keys = T.match_buffer(keys_, (capacity, kv_heads, context, d), spec.cache_dtype)
        values = T.match_buffer(values_, (capacity, kv_heads, context, dv), spec.cache_dtype)
        out = T.match_buffer(out_, (1, heads, n, dv), "float32")
        for h in T.parallel(kv_heads):
            for i in T.serial(n):
                slot = slots[i if apart else 0]
                place = position[0, i if apart else 0] + (0 if apart else i)
                append_row(keys, k, slot, h, place, i, lanes)
                append_row(values, v, slot, h, place, i, lanes)
        for item in T.parallel(sequences * (kv_heads * blocks)):
            sequence = item // (kv_heads * blocks)
            h = item // blocks % kv_heads
            first = item % blocks * block
            last = T.min(first + block, rows) - 1
            slot = slots[sequence]
            start = position[0, sequence]
            stop = start + last // group + 1
            begin = T.max(start + first // group + 1 - spec.reach, T.int64(0)) // KEYS * KEYS
            query = T.alloc_buffer((block, d), "float32", scope="local")
            mixed = T.alloc_buffer((block, dv), "float32", scope="local")
            scores = T.alloc_buffer((block, KEYS), "float32", scope="local")
            sums = T.alloc_buffer((block, KEYS), "float32", scope="local")
            peak = T.alloc_buffer((block,), "float32", scope="local")
            shrink = T.alloc_buffer((block,), "float32", scope="local")
            for r in T.serial(block):
                row = T.min(first + r, last)
                token = sequence + row // group
                for j in T.serial(d):
                    query[r, j] = q[0, h * group + row % group, token, j] * T.float32(spec.scale)
                for j in T.serial(dv):
                    mixed[r, j] = T.float32(0)
                sums[r, T.ramp(0, 1, KEYS)] = T.broadcast(T.float32(0), KEYS)
                peak[r] = T.float32(_NONE)
            for tile in T.serial((stop - begin + (KEYS - 1)) // KEYS):
                base = begin + tile * KEYS
                score_keys(query, keys, scores, slot, h, base, stop, lanes)
                for r in T.serial(block):
                    row = T.min(first + r, last)
                    slope = slopes[h * group + row % group if spec.alibi else 0]
                    weigh_keys(scores, peak, sums, shrink, slope, r, base, start + row // group, spec)
                add_values(mixed, scores, shrink, values, slot, h, base, stop, lanes)
            for r in T.serial(block):
                row = T.min(first + r, last)
                inverse = T.float32(1) / total(sums[r, T.ramp(0, 1, KEYS)])
                for j in T.serial(dv):
                    out[0, h * group + row % group, sequence + row // group, j] = mixed[r, j] * inverse

    return attention
