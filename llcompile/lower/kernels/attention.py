"""Attention over a cache that is appended to in place.

Work is cut into (key-value head, block of up to 8 query rows): a row is one query head of one new token, and rows
of a block share every key and value they read. Keys are taken 16 at a time with a running maximum and sum
(online softmax: Milakov and Gimelshein, arXiv 1805.02867), so scratch memory does not grow with the context, and
only the tokens that are there are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from tvm import tirx
from tvm.script import tirx as T

from llcompile.lower.kernels.vector import exp, intrinsic, splat, tanh

Extent = int | tirx.Var
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


def attention(lanes: int, n: Extent, spec: AttentionSpec) -> tirx.PrimFunc:
    """q (1, H, n, d), k (1, Hkv, n, d), v (1, Hkv, n, dv), position_ids (1, n), slopes (H,) [read only with
    ALiBi], keys (Hkv, context, d) and values (Hkv, context, dv) updated in place -> (1, H, n, dv).

    k and v are appended at position_ids[0, 0]; the query at position p sees positions max(0, p - window + 1)..p.
    """
    group = spec.heads // spec.kv_heads
    d, dv = spec.key_dim, spec.value_dim
    wide, wide_v = gcd(d, lanes), gcd(dv, lanes)
    block = min(group, ROWS) if n == 1 else ROWS
    rows = n * group
    blocks = (rows + (block - 1)) // block
    key_type, value_type = f"float32x{wide}", f"float32x{wide_v}"
    scores_type = f"float32x{KEYS}"
    lowest = spec.window if spec.window else spec.context + 1

    def total(vector):
        return intrinsic("float32", "llvm.vector.reduce.fadd", tirx.const(-0.0, "float32"), vector)

    def largest(vector):
        return intrinsic("float32", "llvm.vector.reduce.fmax", vector)

    def capped(score):
        cap = spec.softcap
        return tanh(score * splat(1 / cap, score)) * splat(cap, score) if cap else score

    @T.inline
    def append(cache, new, h, start, width, wide):
        for i in T.serial(n):
            for j in T.serial(width // wide):
                cache[h, start + i, T.ramp(j * wide, 1, wide)] = T.cast(
                    new[0, h, i, T.ramp(j * wide, 1, wide)], tirx_type(spec.cache_dtype, wide)
                )

    @T.inline
    def score_keys(query, keys, scores, h, base, stop):
        """scores[r, t] = query row r . key base + t; of keys past the end, the last one's."""
        for t in T.serial(KEYS):
            partial = T.alloc_buffer((block * wide,), "float32", scope="local")
            at = T.min(base + t, stop - 1)
            for r in T.unroll(block):
                partial[T.ramp(r * wide, 1, wide)] = T.broadcast(T.float32(0), wide)
            for j in T.serial(d // wide):
                key = T.cast(keys[h, at, T.ramp(j * wide, 1, wide)], key_type)
                for r in T.unroll(block):
                    partial[T.ramp(r * wide, 1, wide)] = (
                        partial[T.ramp(r * wide, 1, wide)] + key * query[r, T.ramp(j * wide, 1, wide)]
                    )
            for r in T.unroll(block):
                fold(partial, scores, r, t, wide)

    @T.inline
    def softmax_step(scores, weights, peak, sums, shrink, slopes, r, head, base, position):
        """Weights of 16 keys for row r, and the factor by which what was summed before shrinks."""
        key = T.cast(base, "int32") + T.ramp(0, 1, KEYS)
        p = T.cast(position, "int32")
        seen = T.And(key <= T.broadcast(p, KEYS), key > T.broadcast(p - lowest, KEYS))
        raw = capped(scores[r, T.ramp(0, 1, KEYS)])
        if spec.alibi:
            biased = raw + T.broadcast(slopes[head], KEYS) * T.cast(key - T.broadcast(p, KEYS), scores_type)
        else:
            biased = raw
        score = T.Select(seen, biased, T.broadcast(T.float32(_NONE), KEYS))
        top = T.max(peak[r], largest(score))
        shrink[r] = exp(peak[r] - top)
        weight = T.Select(seen, exp(score - T.broadcast(top, KEYS)), T.broadcast(T.float32(0), KEYS))
        weights[r, T.ramp(0, 1, KEYS)] = weight
        sums[r, T.ramp(0, 1, KEYS)] = sums[r, T.ramp(0, 1, KEYS)] * T.broadcast(shrink[r], KEYS) + weight
        peak[r] = top

    @T.inline
    def add_values(mixed, weights, shrink, values, h, base, stop):
        for j in T.serial(dv // wide_v):
            acc = T.alloc_buffer((block * wide_v,), "float32", scope="local")
            for r in T.unroll(block):
                acc[T.ramp(r * wide_v, 1, wide_v)] = mixed[r, T.ramp(j * wide_v, 1, wide_v)] * T.broadcast(
                    shrink[r], wide_v
                )
            for t in T.serial(KEYS):
                at = T.min(base + t, stop - 1)
                value = T.cast(values[h, at, T.ramp(j * wide_v, 1, wide_v)], value_type)
                for r in T.unroll(block):
                    acc[T.ramp(r * wide_v, 1, wide_v)] = acc[
                        T.ramp(r * wide_v, 1, wide_v)
                    ] + value * T.broadcast(weights[r, t], wide_v)
            for r in T.unroll(block):
                mixed[r, T.ramp(j * wide_v, 1, wide_v)] = acc[T.ramp(r * wide_v, 1, wide_v)]

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
        q = T.match_buffer(q_, (1, spec.heads, n, d), "float32")
        k = T.match_buffer(k_, (1, spec.kv_heads, n, d), "float32")
        v = T.match_buffer(v_, (1, spec.kv_heads, n, dv), "float32")
        position = T.match_buffer(position_, (1, n), "int64")
        slopes = T.match_buffer(slopes_, (spec.heads if spec.alibi else 1,), "float32")
        keys = T.match_buffer(keys_, (spec.kv_heads, spec.context, d), spec.cache_dtype)
        values = T.match_buffer(values_, (spec.kv_heads, spec.context, dv), spec.cache_dtype)
        out = T.match_buffer(out_, (1, spec.heads, n, dv), "float32")
        for h in T.parallel(spec.kv_heads):
            append(keys, k, h, position[0, 0], d, wide)
            append(values, v, h, position[0, 0], dv, wide_v)
        for item in T.parallel(spec.kv_heads * blocks):
            query = T.alloc_buffer((block, d), "float32", scope="local")
            mixed = T.alloc_buffer((block, dv), "float32", scope="local")
            scores = T.alloc_buffer((block, KEYS), "float32", scope="local")
            weights = T.alloc_buffer((block, KEYS), "float32", scope="local")
            sums = T.alloc_buffer((block, KEYS), "float32", scope="local")
            peak = T.alloc_buffer((block,), "float32", scope="local")
            shrink = T.alloc_buffer((block,), "float32", scope="local")
            start = position[0, 0]
            h = item // blocks
            first = item % blocks * block
            last = T.min(first + block, rows) - 1
            stop = start + last // group + 1
            begin = T.max(start + first // group + 1 - lowest, T.int64(0)) // KEYS * KEYS
            for r in T.serial(block):
                row = T.min(first + r, last)
                for j in T.serial(d // wide):
                    query[r, T.ramp(j * wide, 1, wide)] = q[
                        0, h * group + row % group, row // group, T.ramp(j * wide, 1, wide)
                    ] * T.broadcast(T.float32(spec.scale), wide)
                for j in T.serial(dv // wide_v):
                    mixed[r, T.ramp(j * wide_v, 1, wide_v)] = T.broadcast(T.float32(0), wide_v)
                sums[r, T.ramp(0, 1, KEYS)] = T.broadcast(T.float32(0), KEYS)
                peak[r] = T.float32(_NONE)
            for tile in T.serial((stop - begin + (KEYS - 1)) // KEYS):
                base = begin + tile * KEYS
                score_keys(query, keys, scores, h, base, stop)
                for r in T.serial(block):
                    row = T.min(first + r, last)
                    softmax_step(
                        scores,
                        weights,
                        peak,
                        sums,
                        shrink,
                        slopes,
                        r,
                        h * group + row % group,
                        base,
                        start + row // group,
                    )
                add_values(mixed, weights, shrink, values, h, base, stop)
            for r in T.serial(block):
                row = T.min(first + r, last)
                inverse = T.float32(1) / total(sums[r, T.ramp(0, 1, KEYS)])
                for j in T.serial(dv // wide_v):
                    out[0, h * group + row % group, row // group, T.ramp(j * wide_v, 1, wide_v)] = mixed[
                        r, T.ramp(j * wide_v, 1, wide_v)
                    ] * T.broadcast(inverse, wide_v)

    return attention


def tirx_type(scalar: str, lanes: int) -> str:
    return scalar if lanes == 1 else f"{scalar}x{lanes}"


@T.inline
def fold(partial, scores, r, t, wide):
    """scores[r, t] = sum of the lanes of row r, halved again and again."""
    if wide >= 16:
        partial[T.ramp(r * wide, 1, 8)] = (
            partial[T.ramp(r * wide, 1, 8)] + partial[T.ramp(r * wide + 8, 1, 8)]
        )
    if wide >= 8:
        partial[T.ramp(r * wide, 1, 4)] = (
            partial[T.ramp(r * wide, 1, 4)] + partial[T.ramp(r * wide + 4, 1, 4)]
        )
    if wide >= 4:
        partial[T.ramp(r * wide, 1, 2)] = (
            partial[T.ramp(r * wide, 1, 2)] + partial[T.ramp(r * wide + 2, 1, 2)]
        )
    if wide >= 2:
        scores[r, t] = partial[r * wide] + partial[r * wide + 1]
    else:
        scores[r, t] = partial[r * wide]
