"""Attention over the cache against float64: formats of the cache, grouped heads, lengths around blocks and tiles,
widths that fit no vector, window, cap, ALiBi; prompts, single tokens, and batches of sequences."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from tvm import relax

from llcompile.ir.packing import KEY_BLOCK, cache_arguments
from llcompile.lower.kernels.attention import (
    AttentionSpec,
    Inputs,
    prompt_attention,
    step_attention,
    workspace,
)
from llcompile.lower.kernels.isa import isa_of
from llcompile.lower.values import Value, stored
from tests.unit.lower.harness import Kernel, new_tokens, runnable


def _spec(heads: int, kv_heads: int, dim: int, **other: object) -> AttentionSpec:
    plain = {
        "value_dim": dim, "context": 1200, "cache": "f16", "scale": dim**-0.5, "window": 0, "softcap": 0.0,
        "alibi": False,
    }  # fmt: skip
    return AttentionSpec(heads, kv_heads, dim, **{**plain, **other})


def _inputs(spec: AttentionSpec) -> Inputs:
    """q, k and v in memory."""

    def tensor(name: str, heads: int, width: int) -> Value:
        shape = (1, heads, "n", width)
        return stored(shape, "float32", relax.Var(name, relax.TensorType(dtype="float32", ndim=4)))

    return Inputs(
        tensor("q", spec.heads, spec.key_dim),
        tensor("k", spec.kv_heads, spec.key_dim),
        tensor("v", spec.kv_heads, spec.value_dim),
    )


@dataclass(frozen=True)
class Attention:
    """A kernel; those of single tokens take a workspace."""

    kernel: Kernel
    spec: AttentionSpec
    single: bool

    def __call__(
        self, caches: Caches, new: list[np.ndarray], positions: list[int], slots: list[int]
    ) -> np.ndarray:
        """(1, n, H, dv)"""
        n = len(positions)
        out = np.full((1, n, self.spec.heads, self.spec.value_dim), np.nan, np.float32)
        space = [np.full(workspace(n, self.spec), np.nan, np.float32)] if self.single else []
        where = (np.array([positions]), _slopes(self.spec), np.array(slots))
        self.kernel(*new, *where, *caches.arrays, out, *space)
        return out


@cache
def _kernel(spec: AttentionSpec, isa: str, function: str) -> Attention:
    """decode, prefill or batch"""
    make = prompt_attention if function == "prefill" else step_attention
    n = 1 if function == "decode" else new_tokens()
    made, _ = make(isa_of(isa).lanes, n, spec, _inputs(spec))
    return Attention(Kernel(made, isa), spec, function != "prefill")


class Caches:
    """The arguments of the caches of `slots` sequences, full of what must never count; and what they hold."""

    def __init__(self, spec: AttentionSpec, slots: int) -> None:
        self.spec = spec
        kinds = cache_arguments(spec.cache, spec.kv_heads, spec.key_dim, spec.value_dim, spec.context)
        self.arrays = [
            np.full((slots, *shape), -128 if dtype == "int8" else np.nan, dtype) for dtype, shape in kinds
        ]

    def held(self, slot: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values (Hkv, stop, dim) as numbers."""
        keys, values, *scales = (array[slot].astype(np.float64) for array in self.arrays)
        keys = np.swapaxes(keys, 2, 3).reshape(self.spec.kv_heads, -1, self.spec.key_dim)
        if scales:
            keys, values = keys * scales[0][..., None], values * scales[1][..., None]
        return keys[:, :stop], values[:, :stop]


def _draw(seed: int, spec: AttentionSpec, n: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = ((spec.heads, spec.key_dim), (spec.kv_heads, spec.key_dim), (spec.kv_heads, spec.value_dim))
    return [(rng.standard_normal((1, h, n, width)) * 1.4).astype(np.float32) for h, width in shapes]


def _slopes(spec: AttentionSpec) -> np.ndarray:
    return np.geomspace(1, 0.1, spec.heads if spec.alibi else 1).astype(np.float32)


def _reference(spec: AttentionSpec, q: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(H, dv) in float64 of one token's queries (H, d), the newest of those that the caches hold."""
    stop = keys.shape[1]
    first = max(0, stop - spec.window) if spec.window else 0
    out = np.zeros((spec.heads, spec.value_dim))
    for head in range(spec.heads):
        k, v = keys[head // spec.group, first:], values[head // spec.group, first:]
        score = k @ q[head].astype(np.float64) * spec.scale
        score = spec.softcap * np.tanh(score / spec.softcap) if spec.softcap else score
        score = score + _slopes(spec)[head] * np.arange(first, stop) if spec.alibi else score
        weight = np.exp(score - score.max())
        out[head] = weight / weight.sum() @ v
    return out


def _check(
    spec: AttentionSpec, caches: Caches, slot: int, start: int, q: np.ndarray, out: np.ndarray
) -> None:
    """out (1, n, H, dv) is attention of q (1, H, n, d), tokens from `start` on of a sequence."""
    n = q.shape[2]
    tokens = sorted({0, 1, n // 2, n - 1} & set(range(n)))
    for i in tokens:
        expected = _reference(spec, q[0, :, i], *caches.held(slot, start + i + 1))
        np.testing.assert_allclose(
            out[0, i], expected, atol=4e-6, rtol=1e-5, err_msg=f"token {i} of {n} at {start}"
        )


CASES = {
    "one head": _spec(1, 1, 16, cache="f32"),
    "two share": _spec(4, 2, 64),
    "three share": _spec(6, 2, 80, cache="q8"),
    "four share": _spec(4, 1, 96, cache="f32", value_dim=64),
    "five share": _spec(5, 1, 20, value_dim=36),
    "six share": _spec(6, 1, 32, cache="q8", window=17),
    "seven share": _spec(7, 1, 5, value_dim=3),
    "eight share": _spec(8, 1, 128),
    "twelve share": _spec(12, 1, 70, cache="q8"),
    "narrow window": _spec(2, 2, 32, window=1),
    "window": _spec(4, 2, 32, window=200, cache="f32"),
    "capped": _spec(4, 2, 32, softcap=3.0, cache="f32"),
    "alibi": _spec(4, 4, 32, alibi=True),
    "all": _spec(6, 2, 24, window=150, softcap=2.0, alibi=True, cache="q8"),
    "wide": _spec(2, 1, 256),
}
ISAS = runnable()
EVERYWHERE = (
    "two share",
    "five share",
    "eight share",
    "all",
)  # the others differ in nothing an instruction set decides
CUTS = ([1] * 3, [17, 1, 13, 1, 1, 1, 2], [130, 3, 1], [1000, 1, 17])


@pytest.mark.parametrize(
    ("name", "isa"), [(name, isa) for name in CASES for isa in (ISAS if name in EVERYWHERE else ISAS[:1])]
)
def test_attention(name: str, isa: str) -> None:
    """Prompts in pieces, single tokens between them: at cache lengths 0, 1, 2, 17, 31, 32, 33, ..., 1000, 1001."""
    spec = CASES[name]
    prefill = _kernel(spec, isa, "prefill")
    single = _kernel(spec, isa, "decode" if name in EVERYWHERE else "batch")
    for number, cut in enumerate(CUTS):
        caches, start, slot = Caches(spec, 3), 0, number % 3
        for n in cut:
            before = [array.copy() for array in caches.arrays]
            new = _draw(start + n, spec, n)
            positions = list(range(start, start + n))
            out = (single if n == 1 else prefill)(caches, new, positions, [slot])
            _check(spec, caches, slot, start, new[0], out)
            _only_appended(caches, before, slot, start, n, new[1:])
            start += n


def _only_appended(
    caches: Caches, before: list[np.ndarray], slot: int, start: int, n: int, new: list[np.ndarray]
) -> None:
    """The new tokens are in the slot, rounded as the format says, and nothing else has changed."""
    held = caches.held(slot, start + n)
    for got, want in zip(held, new, strict=True):
        size = np.abs(want[0]).max(axis=-1, keepdims=True)
        bound = {"f32": 0.0, "f16": 2**-11 * size, "q8": size * (0.5 / 127 + 2**-10)}[caches.spec.cache]
        assert (np.abs(got[:, start:] - want[0]) <= bound).all()
    for now, old in zip(caches.arrays, before, strict=True):
        same = now.copy()
        tokens = np.arange(start, start + n)
        if same.ndim == 5:
            same[slot][:, tokens // KEY_BLOCK, :, tokens % KEY_BLOCK] = old[slot][
                :, tokens // KEY_BLOCK, :, tokens % KEY_BLOCK
            ]
        else:
            same[slot, :, tokens] = old[slot, :, tokens]
        np.testing.assert_array_equal(same, old)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["two share", "capped", "all"])
def test_a_token_is_the_same_in_a_prompt_alone_and_in_a_batch(name: str, isa: str) -> None:
    """Bit by bit; sequences of different lengths, short and long, in slots that are not in their order."""
    spec, lengths, slots = CASES[name], [1, 34, 128, 129, 1100], [3, 0, 5, 1, 4]
    prefill, decode, batch = (_kernel(spec, isa, function) for function in ("prefill", "decode", "batch"))
    caches = Caches(spec, 6)
    newest, whole, alone = [], [], []
    for length, slot in zip(lengths, slots, strict=True):
        new = _draw(length, spec, length)
        out = prefill(Caches(spec, 1), new, list(range(length)), [0])
        whole.append(out[:, -1:])
        own = Caches(spec, 1)
        for first, last in ((0, length // 2), (length // 2, length - 1)):
            part = [np.ascontiguousarray(a[:, :, first:last]) for a in new]
            if first < last:
                prefill(own, part, list(range(first, last)), [0])
        for mine, all_ in zip(own.arrays, caches.arrays, strict=True):
            all_[slot] = mine[0]
        newest.append([np.ascontiguousarray(a[:, :, -1:]) for a in new])
        alone.append(decode(own, newest[-1], [length - 1], [0]))
    together = [np.concatenate(part, axis=2) for part in zip(*newest, strict=True)]
    out = batch(caches, together, [length - 1 for length in lengths], slots)
    np.testing.assert_array_equal(out, np.concatenate(alone, axis=1))
    np.testing.assert_array_equal(out, np.concatenate(whole, axis=1))
