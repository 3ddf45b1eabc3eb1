"""Compiled templates against onnxruntime: whole prompts, prompts in chunks, and single tokens give the same bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from llcompile.ir.graph import CacheSpec, Template, TensorSpec
from llcompile.ir.shard import ShardedBlock
from llcompile.shard import Split, shard, split, sum_template
from tests.unit.lower.harness import (
    Library,
    TemplateWriter,
    embedding,
    llama_attention,
    llama_mlp,
    random_inputs,
    runnable,
)

N = 41
CHUNKS = ([16, 16, 9], [7, 1, 1, 16, 3, 1, 2, 10], [1] * N)
HIDDEN: tuple[str, tuple[int | str, ...]] = ("float32", (1, "n", 64))

# Largest difference as a part of the largest output: float32 rounding; float16 caches; int8 activations.
TOLERANCE = {"f32": 3e-6, "q8": 3e-2, "q4": 3e-2}


def _gpt2_attention() -> Template:
    """LayerNorm, one projection with bias split into q, k and v, ALiBi."""
    w = TemplateWriter({"x": HIDDEN})
    x = w.op("LayerNormalization", "x", w.weight("plain", 64), w.weight("plain", 64), epsilon=1e-5)
    parts = w.op("Split", w.linear(x, 192, 64, bias=True), outputs=3, axis=2, num_outputs=3)
    q, k, v = (w.heads(p, 4, 16) for p in parts)
    slopes = [float(s) for s in np.geomspace(0.5, 0.01, 4)]
    mixed = w.attend(q, k, v, CacheSpec(4, 4, 16, 16), alibi=slopes)
    y = w.op("Add", "x", w.linear(mixed, 64, 64, bias=True))
    return w.finish("gpt2", (y, (1, "n", 64)))


def _phi3_attention() -> Template:
    """A projection cut by Slice, rotary positions on half of each head, normed queries, an uneven value width."""
    tables: Any = ("float32", (1, "n", 4))
    w = TemplateWriter({"x": HIDDEN, "cos": tables, "sin": tables})
    packed = w.linear("x", 64 + 32 + 24, 64)
    ends = [(0, 64), (64, 96), (96, 120)]
    one = w.constant([2], "int64")
    q, k, v = (
        w.op("Slice", packed, w.constant([a], "int64"), w.constant([b], "int64"), one) for a, b in ends
    )
    q, k, v = w.heads(q, 4, 16), w.heads(k, 2, 16), w.heads(v, 2, 12)
    q = w.op("RMSNormalization", q, w.weight("plain", 16), axis=-1)
    q, k = (w.op("RotaryEmbedding", t, "cos", "sin", rotary_embedding_dim=8) for t in (q, k))
    mixed = w.attend(q, k, v, CacheSpec(4, 2, 16, 12, window=9), softcap=4.0)
    return w.finish("phi3", (w.linear(mixed, 64, 48), (1, "n", 64)))


def _pointwise(kind: str) -> Callable[[], Template]:
    """An activation with what surrounds it in one family or another, and two outputs."""

    def make() -> Template:
        w = TemplateWriter({"x": HIDDEN, "y": HIDDEN})
        scaled = w.op("Mul", "x", w.constant(3.0))
        settings = {"approximate": "tanh"} if kind == "GeluTanh" else {}
        active = w.op(kind.removesuffix("Tanh") if kind != "Tanh" else kind, scaled, **settings)
        gain = w.op("Add", w.weight("plain", 64), w.constant(1.0))
        normed = w.op("RMSNormalization", w.op("Add", active, "y"), gain, axis=-1)
        capped = w.op("Mul", w.op("Tanh", w.op("Div", normed, w.constant(2.0))), w.constant(2.0))
        return w.finish("act", (capped, (1, "n", 64)), (w.op("Sub", active, "y"), (1, "n", 64)))

    return make


def _rearranged() -> Template:
    """Concat, Unsqueeze, Transpose, Where, Gather, Expand: each an index, fused with its neighbours."""
    w = TemplateWriter({"x": HIDDEN})
    left, right = w.op("Split", "x", w.constant([40, 24], "int64"), outputs=2, axis=-1)
    swapped = w.op("Concat", right, left, axis=-1)
    boxed = w.op("Unsqueeze", swapped, w.constant([0], "int64"))
    reversed_ = w.op("Gather", w.op("Squeeze", boxed, w.constant([0], "int64")),
                     w.constant(np.arange(64)[::-1], "int64"), axis=2)  # fmt: skip
    mask = w.op("Greater", reversed_, w.op("Expand", w.constant([0.0]), w.constant([1, 1, 64], "int64")))
    y = w.op("Where", mask, reversed_, w.op("Neg", w.op("Pow", "x", w.constant(2.0))))
    return w.finish("moved", (y, (1, "n", 64)))


def _positions() -> Template:
    w = TemplateWriter({"position_ids": ("int64", (1, "n"))})
    position = w.op("Cast", w.op("Unsqueeze", "position_ids", w.constant([2], "int64")), to=1)
    angle = w.op("MatMul", position, w.constant(10000.0 ** -(np.arange(8) / 8)[None, None]))
    return w.finish("positions", *((w.op(kind, angle), (1, "n", 8)) for kind in ("Cos", "Sin")))


def _pieces(whole: Template, sums: int, multiple: int = 1) -> ShardedBlock:
    """For three devices: of attention by heads, one key head being on two devices."""
    found = split(whole)
    assert isinstance(found, Split), found
    pieces = shard(found, (0.5, 0.25, 0.25), sums, multiple)
    assert isinstance(pieces, ShardedBlock), pieces
    return pieces


def _shard(make: Callable[[], Template], rank: int) -> Callable[[], Template]:
    return lambda: _pieces(make(), 1).shards[rank].template


def _tail(make: Callable[[], Template], sums: int) -> Callable[[], Template]:
    return lambda: _pieces(make(), sums).tail.template


def _attention() -> Template:
    return llama_attention(64, 4, 2, 16)


def _mlp() -> Template:
    return llama_mlp(64, 96)


TEMPLATES: dict[str, Callable[[], Template]] = {
    "llama attention": lambda: llama_attention(64, 4, 2, 16),
    "llama mlp": lambda: llama_mlp(64, 72),
    "llama mlp of whole groups": lambda: llama_mlp(64, 96),
    "embedding": lambda: embedding(11, 72),
    "gpt2 attention": _gpt2_attention,
    "phi3 attention": _phi3_attention,
    "llama attention shard": _shard(_attention, 0),
    "llama attention shard of half a key head": _shard(_attention, 2),
    "llama attention shard that ends within a group": lambda: _pieces(_attention(), 1, 32).shards[1].template,
    "phi3 attention shard": _shard(_phi3_attention, 1),
    "llama mlp shard": _shard(_mlp, 0),
    "llama mlp tail of three": _tail(_mlp, 3),
    "phi3 attention tail of one": _tail(_phi3_attention, 1),
    "sum of three": lambda: sum_template(TensorSpec("h", *HIDDEN), 3),
    "rearranged": _rearranged,
    "positions": _positions,
    **{kind: _pointwise(kind) for kind in ("Sigmoid", "Relu", "Tanh", "Gelu", "GeluTanh", "Erf", "Exp")},
}
ISAS = runnable()
QUANTISED = (
    "llama attention",
    "llama mlp",
    "llama mlp of whole groups",
    "embedding",
    "gpt2 attention",
    "phi3 attention",
    "llama attention shard of half a key head",
    "llama attention shard that ends within a group",
    "llama mlp shard",
)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Library]:
    """A library of all templates (QUANTISED ones in a smaller format) for each format, compiled once."""

    @cache
    def library(quant: str) -> Library:
        names, isa = (TEMPLATES, ISAS[0]) if quant == "f32" else (QUANTISED, ISAS[-1])
        templates = [replace(TEMPLATES[name](), id=name.replace(" ", "_")) for name in names]
        return Library(templates, quant, isa, tmp_path_factory.mktemp(quant) / "t.so")

    return library


def _check(library: Library, name: str, tolerance: float) -> None:
    id = name.replace(" ", "_")
    inputs = random_inputs(library.templates[id], N)
    expected = library.oracle(id, inputs)
    whole, *others = (library.run(id, inputs, chunks) for chunks in CHUNKS)
    for got, want in zip(whole, expected, strict=True):
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= tolerance * np.abs(want).max(), name
    for other, chunks in zip(others, CHUNKS[1:], strict=True):
        for got, want in zip(other, whole, strict=True):
            np.testing.assert_array_equal(got, want, err_msg=f"{name} in {chunks}")


@pytest.mark.parametrize("name", TEMPLATES)
def test_float32(name: str, libraries: Callable[[str], Library]) -> None:
    _check(libraries("f32"), name, TOLERANCE["f32"])


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize("quant", ["q8", "q4"])
def test_smaller_formats(name: str, quant: str, libraries: Callable[[str], Library]) -> None:
    _check(libraries(quant), name, TOLERANCE[quant])


def test_parts_are_added_in_the_order_of_ranks(libraries: Callable[[str], Library]) -> None:
    """In the sum and in the tail, whose other terms come after: bit by bit as numpy adds them."""
    library = libraries("f32")
    for id, terms in (("sum_of_three", 3), ("llama_mlp_tail_of_three", 4)):
        inputs = random_inputs(library.templates[id], N, seed=5)
        a, b, c, *rest = inputs.values()
        assert len(rest) == terms - 3
        expected = sum(rest, (a + b) + c)
        assert not np.array_equal(expected, sum(rest, a + (b + c)))
        np.testing.assert_array_equal(library.run(id, inputs, [16, 16, 9])[0], expected)


def test_the_functions_of_pieces(libraries: Callable[[str], Library]) -> None:
    """Those of any template: with a cache also that of several sequences."""
    machine = libraries("f32").machine
    for id, names in (
        ("llama_attention_shard", ("decode", "prefill", "batch")),
        ("llama_mlp_shard", ("decode", "prefill")),
        ("llama_mlp_tail_of_three", ("decode", "prefill")),
        ("sum_of_three", ("decode", "prefill")),
    ):
        for name in names:
            assert machine[f"{id}_{name}"] is not None
