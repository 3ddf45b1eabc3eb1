"""Products take with them what follows: which nodes become one kernel, and that it computes what they did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from llcompile.ir.graph import Template
from llcompile.lower.fuse import PRODUCTS, fuse
from llcompile.lower.library import build_module
from llcompile.lower.onnx_graph import Node, OnnxGraph, read_graph
from llrun.schema import Precision, Shapes
from tests.unit.lower.harness import (
    PROCESSORS,
    Library,
    TemplateWriter,
    llama_attention,
    llama_mlp,
    random_inputs,
    runnable,
)

N = 83
CHUNKS = ([83], [64, 19], [1, 65, 1, 16], [7] * 11 + [1] * 6)


def _fused(template: Template) -> OnnxGraph:
    return fuse(read_graph(template), {w.name: w.shape[0] for w in template.weights})


def _kernels(graph: OnnxGraph) -> list[list[tuple[int, tuple[str, ...]]]]:
    """For each Products node: the number of matrices, and the operators that follow, of each product."""
    nodes = [node for node in graph.nodes if node.op == PRODUCTS]
    return [
        [(len(p.linears), tuple(step.op for step in p.then)) for p in node.attributes["products"]]
        for node in nodes
    ]


def _writer(**inputs: int) -> TemplateWriter:
    return TemplateWriter({name: ("float32", (1, "n", width)) for name, width in inputs.items()})


def test_products_of_one_input_are_one_kernel() -> None:
    assert _kernels(_fused(llama_attention(64, 4, 2, 16))) == [[(1, ())] * 3, [(1, ("Add",))]]
    assert _kernels(_fused(llama_mlp(64, 96))) == [[(2, ("Sigmoid", "Mul", "Mul"))], [(1, ("Add",))]]


def test_a_product_ends_where_two_tensors_would_leave() -> None:
    w = _writer(x=32)
    product = w.linear("x", 32, 32)
    positive, doubled = w.op("Relu", product), w.op("Add", product, product)
    both = w.op("Mul", positive, doubled)
    template = w.finish("two", (both, (1, "n", 32)), (positive, (1, "n", 32)))
    assert _kernels(_fused(template)) == [[(1, ())]]
    template = w.finish("one", (w.op("Neg", both), (1, "n", 32)))
    assert _kernels(_fused(template)) == [[(1, ("Relu", "Add", "Mul", "Neg"))]]


def test_a_product_waits_for_its_operands() -> None:
    """The second product's norm is added to the first: they cannot be one kernel, though they read the same."""
    template = _waiting()
    graph = _fused(template)
    assert _kernels(graph) == [[(1, ())], [(1, ("Add",))]]
    there = (
        {spec.name for spec in template.inputs} | {w.name for w in template.weights} | set(graph.constants)
    )
    for node in graph.nodes:
        assert there.issuperset(name for name in node.inputs if name), node
        there |= set(node.outputs)


def _waiting() -> Template:
    w = _writer(x=32)
    first, second = w.linear("x", 32, 32), w.linear("x", 32, 32)
    normed = w.op("RMSNormalization", second, w.weight("plain", 32), axis=-1)
    return w.finish("waiting", (w.op("Add", first, normed), (1, "n", 32)))


def test_matrices_of_other_heights_or_inputs_are_multiplied_apart() -> None:
    w = _writer(x=32, y=32, s=1)
    wide, single, other = w.linear("x", 32, 32), w.linear("x", 1, 32), w.linear("y", 32, 32)
    template = w.finish("t", (w.op("Add", w.op("Mul", wide, single), other), (1, "n", 32)))
    kernels = _kernels(_fused(template))
    assert sorted(number for kernel in kernels for number, _ in kernel) == [1, 1, 1]


def test_a_norm_is_kept_in_float_only_if_something_reads_floats() -> None:
    def types(template: Template, quant: str) -> list[str]:
        module = build_module([template], Precision.of(quant, "f16"), Shapes(32, 16), PROCESSORS["neon"])
        text = module[f"{template.id}_decode"].script(show_meta=False)
        (line,) = (line for line in text.splitlines() if "_norm" in line)
        return [dtype for dtype in ("int8", "float32") if f'32), dtype="{dtype}"' in line.split("out_ty")[1]]

    def normed(residual: bool) -> Template:
        w = _writer(x=32)
        x = w.op("RMSNormalization", "x", w.weight("plain", 32), axis=-1)
        product = w.linear(x, 32, 32)
        return w.finish("t", (w.op("Add", product, x) if residual else product, (1, "n", 32)))

    assert types(normed(False), "q4") == ["int8"]
    assert types(normed(True), "q4") == ["float32"]
    assert types(normed(False), "f16") == ["float32"]


def test_no_order_is_found_for_a_node_that_waits_for_itself() -> None:
    loop = Node("Neg", "loop", ("y",), ("y",), {})
    with pytest.raises(AssertionError):
        fuse(OnnxGraph((loop,), {}, ("y",), {}), {})


def _shapes() -> Template:
    """Everything that may follow a product, on numbers of rows that fill no tile, part of one, and groups."""
    w = _writer(x=40, s=1, r=33)
    ragged = w.op("Clip", w.linear("x", 33, 40, bias=True), w.constant(-2.0), w.constant(1.5))
    ragged = w.op("Add", w.op("Mul", w.op("Gelu", ragged), "s"), "r")
    scaled = w.op("Mul", w.op("Mul", w.linear("x", 40, 40), "x"), w.weight("plain", 40))
    capped = w.op("Mul", w.op("Tanh", w.op("Div", scaled, w.constant(3.0))), w.constant(3.0))
    narrow = w.op(
        "Mul", w.op("Exp", w.op("Min", w.linear("x", 1, 40), w.constant(1.0))), w.weight("plain", 1)
    )
    return w.finish("shapes", (ragged, (1, "n", 33)), (capped, (1, "n", 40)), (narrow, (1, "n", 1)))


def _rounded() -> Template:
    """Products of products, with norms and without, of whole groups and others."""
    w = _writer(x=64)
    x = w.op("LayerNormalization", "x", w.weight("plain", 64), w.weight("plain", 64), epsilon=1e-5)
    gate, up = w.linear(x, 96, 64, bias=True), w.linear(x, 96, 64)
    active = w.op("Mul", w.op("Gelu", gate, approximate="tanh"), up)
    other = w.op("Relu", w.linear(x, 72, 64))
    y = w.op("Add", w.linear(active, 64, 96), w.linear(other, 64, 72))
    odd = w.op("RMSNormalization", w.linear(y, 40, 64), w.weight("plain", 40), axis=-1)
    return w.finish("rounded", (w.op("Add", y, w.linear(odd, 64, 40)), (1, "n", 64)))


def _spread() -> Template:
    """What follows is wider than the product: one column times a row."""
    w = _writer(x=32)
    wide = w.op("Add", w.linear("x", 1, 32), w.weight("plain", 48))
    return w.finish("spread", (w.op("Relu", wide), (1, "n", 48)))


TEMPLATES = {"shapes": _shapes, "rounded": _rounded, "spread": _spread, "waiting": _waiting}
TOLERANCE = {
    "f32": 3e-6,
    "f16": 3e-6,
    "q8": 3e-2,
    "q6": 3e-2,
    "q5": 3e-2,
    "q4": 4e-2,
}  # float32 sums; activations in int8


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Library]:
    @cache
    def library(quant: str, isa: str) -> Library:
        templates = [replace(make(), id=name) for name, make in TEMPLATES.items()]
        return Library(templates, quant, isa, tmp_path_factory.mktemp(quant) / "t.so", context=96, chunk=96)

    return library


@pytest.mark.parametrize("isa", runnable())
@pytest.mark.parametrize("quant", ["f32", "f16", "q8", "q4"])
def test_fused_kernels_compute_what_the_operators_do(
    quant: str, isa: str, libraries: Callable[[str, str], Library]
) -> None:
    library = libraries(quant, isa)
    for name in TEMPLATES:
        inputs = random_inputs(library.templates[name], N)
        expected = library.oracle(name, inputs)
        for chunks in CHUNKS:
            for got, want in zip(library.run(name, inputs, chunks), expected, strict=True):
                assert got.shape == want.shape
                assert np.abs(got - want).max() <= TOLERANCE[quant] * np.abs(want).max(), (name, chunks)


@pytest.mark.parametrize("quant", ["q8", "q6", "q5", "q4"])
def test_a_token_is_the_same_alone_and_among_others(
    quant: str, libraries: Callable[[str, str], Library]
) -> None:
    library = libraries(quant, runnable()[0])
    for name in TEMPLATES:
        inputs = random_inputs(library.templates[name], N)
        whole, *others = (library.run(name, inputs, chunks) for chunks in CHUNKS)
        for other in others:
            for got, want in zip(other, whole, strict=True):
                np.testing.assert_array_equal(got, want)
