"""Attention over the cache against float64: lengths around the tile of 16 keys, grouped heads, window, cap, ALiBi."""

from __future__ import annotations

import numpy as np
import pytest

from llcompile.lower.kernels.attention import AttentionSpec, attention
from llcompile.lower.kernels.isa import isa_of
from tests.unit.lower.harness import Kernel, new_tokens, runnable


def _spec(heads: int, kv_heads: int, dim: int, **other: object) -> AttentionSpec:
    plain = {
        "value_dim": dim, "context": 70, "cache_dtype": "float32", "scale": dim**-0.5, "window": 0, "softcap": 0.0,
        "alibi": False,
    }  # fmt: skip
    return AttentionSpec(heads, kv_heads, dim, **{**plain, **other})


CASES = {
    "one head": _spec(1, 1, 16),
    "grouped": _spec(6, 2, 64),
    "all heads share": _spec(8, 1, 32, cache_dtype="float16"),
    "twelve share": _spec(12, 1, 16),
    "odd widths": _spec(4, 2, 20, value_dim=36),
    "no vector": _spec(2, 2, 5, value_dim=3),
    "wide": _spec(3, 3, 80, cache_dtype="float16"),
    "window": _spec(4, 2, 32, window=17),
    "narrow window": _spec(4, 2, 32, window=1),
    "capped": _spec(4, 2, 32, softcap=3.0),
    "alibi": _spec(4, 4, 32, alibi=True),
    "all": _spec(4, 2, 32, window=9, softcap=2.0, alibi=True, cache_dtype="float16"),
}
NEW_AND_CACHED = [(1, 0), (1, 1), (1, 31), (1, 32), (1, 33), (1, 69), (2, 0), (3, 30), (17, 16), (17, 53)]


SLOT = 1


def _reference(
    spec: AttentionSpec, q: np.ndarray, keys: np.ndarray, values: np.ndarray, slopes: np.ndarray, start: int
) -> np.ndarray:
    """(1, H, n, dv) in float64 over caches that already hold the new tokens."""
    out = np.zeros((*q.shape[:3], spec.value_dim))
    for head in range(spec.heads):
        k, v = (c[head // spec.group].astype(np.float64) for c in (keys, values))
        for i in range(q.shape[2]):
            stop = start + i + 1
            first = max(0, stop - spec.window) if spec.window else 0
            score = k[first:stop] @ q[0, head, i].astype(np.float64) * spec.scale
            score = spec.softcap * np.tanh(score / spec.softcap) if spec.softcap else score
            score = score + slopes[head % len(slopes)] * np.arange(first, stop) if spec.alibi else score
            weight = np.exp(score - score.max())
            out[0, head, i] = weight / weight.sum() @ v[first:stop]
    return out


def _check(kernel: Kernel, spec: AttentionSpec, n: int, start: int) -> None:
    rng = np.random.default_rng(n * 1000 + start)

    def draw(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 2).astype(np.float32)

    q = draw(1, spec.heads, n, spec.key_dim)
    new = [draw(1, spec.kv_heads, n, width) for width in (spec.key_dim, spec.value_dim)]
    slopes = np.geomspace(1, 0.1, spec.heads if spec.alibi else 1).astype(np.float32)
    before, caches = [], []
    for tokens in new:
        cache = np.full((3, spec.kv_heads, spec.context, tokens.shape[-1]), np.nan, spec.cache_dtype)
        cache[SLOT, :, :start] = draw(spec.kv_heads, start, tokens.shape[-1])
        before.append(cache.copy())
        caches.append(cache)
    out = np.full((1, spec.heads, n, spec.value_dim), np.nan, np.float32)
    kernel(q, *new, np.arange(start, start + n)[None], slopes, np.array([SLOT]), *caches, out)
    for cache, old, tokens in zip(caches, before, new, strict=True):
        old[SLOT, :, start : start + n] = tokens[0].astype(spec.cache_dtype)
        np.testing.assert_array_equal(cache, old)  # appended, and nothing else touched
    own = [cache[SLOT] for cache in caches]
    np.testing.assert_allclose(out, _reference(spec, q, *own, slopes, start), atol=4e-6, rtol=1e-5)


ISAS = runnable()
EVERYWHERE = (
    "grouped",
    "odd widths",
    "all",
)  # the other cases differ in nothing that an instruction set decides


@pytest.mark.parametrize(
    ("name", "isa"), [(name, isa) for name in CASES for isa in (ISAS if name in EVERYWHERE else ISAS[:1])]
)
def test_attention(name: str, isa: str) -> None:
    spec = CASES[name]
    lanes = isa_of(isa).lanes
    decode, prefill = (
        Kernel(attention(lanes, n, spec, apart=isinstance(n, int)), isa) for n in (1, new_tokens())
    )
    for n, start in NEW_AND_CACHED:
        _check(prefill, spec, n, start)
        if n == 1:
            _check(decode, spec, 1, start)


def test_a_thousand_tokens() -> None:
    isa = runnable()[0]
    spec = _spec(8, 2, 64, context=1100, cache_dtype="float16")
    _check(Kernel(attention(isa_of(isa).lanes, 1, spec, apart=True), isa), spec, 1, 1000)
    _check(Kernel(attention(isa_of(isa).lanes, new_tokens(), spec, apart=False), isa), spec, 17, 1000)
