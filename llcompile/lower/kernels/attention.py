# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-calls=False, disallow-untyped-decorators=False
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


def neighbours(a: Expr, b: Expr, lanes: int) -> Expr:
    """Sums of neighbouring lanes of a, then of b."""
    even = [tirx.const(i, "int32") for i in range(0, 2 * lanes, 2)]
    odd = [tirx.const(i, "int32") for i in range(1, 2 * lanes, 2)]
    return tirx.Shuffle([a, b], even) + tirx.Shuffle([a, b], odd)


def total(vector: Expr) -> Expr:
    return intrinsic("float32", "llvm.vector.reduce.fadd", tirx.const(-0.0, "float32"), vector)


def largest(vector: Expr) -> Expr:
    return intrinsic("float32", "llvm.vector.reduce.fmax", vector)


def capped(score: Expr, cap: float) -> Expr:
    """cap * tanh(score / cap); cap 0: no cap."""
    return tanh(score * splat(1 / cap, score)) * splat(cap, score) if cap else score


@T.inline
def append_row(cache, new, h, start, i, lanes, width, dtype):
    wide = T.meta_var(gcd(width, lanes))
    for j in T.serial(width // wide):
        cache[h, start + i, run(j * wide, wide)] = T.cast(
            new[0, h, i, run(j * wide, wide)], vector_type(dtype, wide)
        )


@T.inline
def fold(products, scores, r, part, wide):
    """scores[r, part * wide + t] = sum of the lanes of products[r, part * wide + t], `wide` of them at once: each
    step adds neighbouring lanes of two vectors, until one vector has a sum a lane."""
    sums = T.alloc_buffer((wide, wide), "float32", scope="local")
    for t in T.unroll(wide):
        sums[t, run(0, wide)] = products[r, part * wide + t, run(0, wide)]
    if wide >= 16:
        for i in T.unroll(wide // 2):
            sums[i, run(0, wide)] = neighbours(sums[2 * i, run(0, wide)], sums[2 * i + 1, run(0, wide)], wide)
    if wide >= 8:
        for i in T.unroll(4):
            sums[i, run(0, wide)] = neighbours(sums[2 * i, run(0, wide)], sums[2 * i + 1, run(0, wide)], wide)
    if wide >= 4:
        for i in T.unroll(2):
            sums[i, run(0, wide)] = neighbours(sums[2 * i, run(0, wide)], sums[2 * i + 1, run(0, wide)], wide)
    if wide >= 2:
        sums[0, run(0, wide)] = neighbours(sums[0, run(0, wide)], sums[1, run(0, wide)], wide)
    scores[r, run(part * wide, wide)] = sums[0, run(0, wide)]


@T.inline
def score_keys(query, keys, scores, h, base, stop, block, lanes, d):
    """scores[r, t] = query row r . key base + t; of keys past the end, the last one's."""
    wide = T.meta_var(gcd(d, lanes))
    products = T.alloc_buffer((block, KEYS, wide), "float32", scope="local")
    for t in T.serial(KEYS):
        at = T.min(base + t, stop - 1)
        sums = T.alloc_buffer((block, wide), "float32", scope="local")
        for r in T.unroll(block):
            sums[r, run(0, wide)] = same(T.float32(0), wide)
        for j in T.serial(d // wide):
            key = T.cast(keys[h, at, run(j * wide, wide)], vector_type("float32", wide))
            for r in T.unroll(block):
                sums[r, run(0, wide)] = sums[r, run(0, wide)] + key * query[r, run(j * wide, wide)]
        for r in T.unroll(block):
            products[r, t, run(0, wide)] = sums[r, run(0, wide)]
    for r in T.serial(block):
        for part in T.unroll(KEYS // wide):
            fold(products, scores, r, part, wide)


@T.inline
def weigh_keys(scores, peak, sums, shrink, slope, r, base, position, spec):
    """Scores of row r become weights e**(score - peak); `shrink`: what sums over earlier keys must be scaled by."""
    key = T.cast(base, "int32") + T.ramp(0, 1, KEYS)
    p = T.cast(position, "int32")
    seen = T.And(key <= T.broadcast(p, KEYS), key > T.broadcast(p - spec.reach, KEYS))
    distance = T.cast(key - T.broadcast(p, KEYS), vector_type("float32", KEYS))
    raw = capped(scores[r, T.ramp(0, 1, KEYS)], spec.softcap)
    score = T.Select(
        seen,
        raw + T.broadcast(slope, KEYS) * distance if spec.alibi else raw,
        T.broadcast(T.float32(_NONE), KEYS),
    )
    top = T.max(peak[r], largest(score))
    weight = T.Select(seen, exp(score - T.broadcast(top, KEYS)), T.broadcast(T.float32(0), KEYS))
    factor = exp(peak[r] - top)
    scores[r, T.ramp(0, 1, KEYS)] = weight
    sums[r, T.ramp(0, 1, KEYS)] = sums[r, T.ramp(0, 1, KEYS)] * T.broadcast(factor, KEYS) + weight
    shrink[r] = factor
    peak[r] = top


@T.inline
def add_values(mixed, weights, shrink, values, h, base, stop, block, lanes, dv):
    """mixed[r] = shrink[r] * mixed[r] + the values of 16 keys under their weights."""
    wide = T.meta_var(gcd(dv, lanes))
    for j in T.serial(dv // wide):
        acc = T.alloc_buffer((block, wide), "float32", scope="local")
        for r in T.unroll(block):
            acc[r, run(0, wide)] = mixed[r, run(j * wide, wide)] * same(shrink[r], wide)
        for t in T.serial(KEYS):
            at = T.min(base + t, stop - 1)
            value = T.cast(values[h, at, run(j * wide, wide)], vector_type("float32", wide))
            for r in T.unroll(block):
                acc[r, run(0, wide)] = acc[r, run(0, wide)] + value * same(weights[r, t], wide)
        for r in T.unroll(block):
            mixed[r, run(j * wide, wide)] = acc[r, run(0, wide)]


def attention(lanes: int, n: Extent, spec: AttentionSpec) -> tirx.PrimFunc:
    """q (1, H, n, d), k (1, Hkv, n, d), v (1, Hkv, n, dv), position_ids (1, n), slopes (H,) ((1,), not read, without
    ALiBi), keys (Hkv, context, d) and values (Hkv, context, dv) updated in place -> (1, H, n, dv).

    k and v are appended at position_ids[0, 0]; the query at position p sees positions max(0, p - window + 1)..p.
    """
    heads, kv_heads, context, group, d, dv = (
        spec.heads, spec.kv_heads, spec.context, spec.group, spec.key_dim, spec.value_dim,
    )  # fmt: skip
    block = min(group, ROWS) if isinstance(n, int) else ROWS
    rows = n * group
    blocks = (rows + (block - 1)) // block

    @T.prim_func(private=True, s_tir=True)
    def attention(
        q_: T.handle,
        k_: T.handle,
        v_: T.handle,
        position_: T.handle,
        slopes_: T.handle,
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
        keys = T.match_buffer(keys_, (kv_heads, context, d), spec.cache_dtype)
        values = T.match_buffer(values_, (kv_heads, context, dv), spec.cache_dtype)
        out = T.match_buffer(out_, (1, heads, n, dv), "float32")
        for h in T.parallel(kv_heads):
            for i in T.serial(n):
                append_row(keys, k, h, position[0, 0], i, lanes, d, spec.cache_dtype)
                append_row(values, v, h, position[0, 0], i, lanes, dv, spec.cache_dtype)
        for item in T.parallel(kv_heads * blocks):
            h = item // blocks
            first = item % blocks * block
            last = T.min(first + block, rows) - 1
            start = position[0, 0]
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
                for j in T.serial(d):
                    query[r, j] = q[0, h * group + row % group, row // group, j] * T.float32(spec.scale)
                for j in T.serial(dv):
                    mixed[r, j] = T.float32(0)
                sums[r, T.ramp(0, 1, KEYS)] = T.broadcast(T.float32(0), KEYS)
                peak[r] = T.float32(_NONE)
            for tile in T.serial((stop - begin + (KEYS - 1)) // KEYS):
                base = begin + tile * KEYS
                score_keys(query, keys, scores, h, base, stop, block, lanes, d)
                for r in T.serial(block):
                    row = T.min(first + r, last)
                    slope = slopes[h * group + row % group if spec.alibi else 0]
                    weigh_keys(scores, peak, sums, shrink, slope, r, base, start + row // group, spec)
                add_values(mixed, scores, shrink, values, h, base, stop, block, lanes, dv)
            for r in T.serial(block):
                row = T.min(first + r, last)
                inverse = T.float32(1) / total(sums[r, T.ramp(0, 1, KEYS)])
                for j in T.serial(dv):
                    out[0, h * group + row % group, row // group, j] = mixed[r, j] * inverse

    return attention
