"""Templates: isomorphic blocks share one, different blocks never do; each is a model of its own that runs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import networkx as nx
import numpy as np
import onnx
import pytest

from llcompile.dataflow.canonical import Canonical, constant_key, normalize_layers
from llcompile.dataflow.nodes import Dataflow
from llcompile.dataflow.shapes import infer_specs
from llcompile.graph import build_graph
from llcompile.graph.build import block_forms, simplified_dataflow
from llcompile.ir.graph import CacheSpec, TensorSpec
from llcompile.ir.model import Model
from tests.unit.graph.oracle import chained, check_template, token_ids, whole
from tests.unit.graph.synthetic import (
    VOCAB,
    Writer,
    decoder,
    normed_sums,
    parallel,
    post_norms,
    random_weights,
    sequential,
)


def as_networkx(form: Canonical, flow: Dataflow, specs: dict[str, TensorSpec]) -> nx.MultiDiGraph:
    """The block as a labelled graph without canonical numbers: networkx's matcher is the oracle."""
    graph = nx.MultiDiGraph()
    for name in (*form.inputs, *form.weights, *form.constants):
        spec = specs[name]
        kind = next(
            letter
            for letter, group in (
                (name, form.ids),
                ("x", form.activations),
                ("p", form.positions),
                (dict(zip(form.weights, form.roles, strict=True)).get(name), form.weights),
                ("c", form.constants),
            )
            if name in group
        )
        value = constant_key(flow.constants[name]) if name in flow.constants else None
        graph.add_node(name, label=(kind, spec.dtype, spec.shape, value))
    for number, node in enumerate(normalize_layers(form.nodes)):
        graph.add_node(number, label=(node.op, node.attributes))
        for place, name in enumerate(node.outputs):
            graph.add_node(name, label="value")
            graph.add_edge(number, name, label=("out", place))
        for place, name in enumerate(node.inputs):
            graph.add_edge(name, number, label=("in", place))
    for place, name in enumerate(form.outputs):
        graph.add_node(("output", name), label=("output", place))
        graph.add_edge(name, ("output", name), label="output")
    return graph


def isomorphic(one: nx.MultiDiGraph, other: nx.MultiDiGraph) -> bool:
    match = nx.algorithms.isomorphism.categorical_node_match("label", None)
    edges = nx.algorithms.isomorphism.categorical_multiedge_match("label", None)
    return bool(nx.is_isomorphic(one, other, node_match=match, edge_match=edges))


def scaled(w: Writer, x: str, layer: int, table: tuple[str, str]) -> str:
    """A layer whose attention reads its norm's output times a constant."""
    h = w.op("Mul", w.norm(x, f"layers.{layer}.norm1"), w.constant(1.5))
    x = w.op("Add", x, w.attention(h, layer, table))
    return w.op("Add", x, w.gated_mlp(w.norm(x, f"layers.{layer}.norm2"), layer))


def variant(change: str) -> Model:
    """One layer as the others, then a second with one difference."""
    w = Writer()
    x, table = w.embedding("input_ids", "embed", w.vocab), w.rotary_table()
    x = scaled(w, x, 0, table) if change == "constant" else sequential(w, x, 0, table)
    attrs = {"window": {"window": 8}, "softcap": {"softcap": 5.0}, "scale": {"scale": 0.1}}.get(change, {})
    swapped = table[::-1] if change == "swapped tables" else table
    h = w.norm(x, "norm1")
    if change == "constant":
        h = w.op("Mul", h, w.constant(2.5))
    x = w.op("Add", x, w.attention(h, 1, swapped, bias=change == "bias", **attrs))
    if change == "width":
        w.ffn = 48
    x = w.op("Add", x, w.gated_mlp(w.norm(x, "norm2"), 1))
    w.head(w.norm(x, "norm"))
    return w.model()


CHANGES = ["none", "window", "softcap", "scale", "swapped tables", "bias", "width", "constant"]


@pytest.mark.parametrize("change", CHANGES)
def test_equal_keys_are_isomorphic_graphs_and_no_others(change: str) -> None:
    flow = simplified_dataflow(variant(change))
    specs = infer_specs(flow)
    forms, _ = block_forms(flow, specs)
    graphs = [as_networkx(form, flow, specs) for form in forms]
    for (a, graph_a), (b, graph_b) in combinations(zip(forms, graphs, strict=True), 2):
        assert (a.key == b.key) == isomorphic(graph_a, graph_b)


@pytest.mark.parametrize("change", CHANGES)
def test_templates_differ_only_where_blocks_do(change: str) -> None:
    """Position tables are numbered by first use: who reads them the other way round binds them so."""
    expected = 4 if change in ("none", "swapped tables") else 5
    assert len(build_graph(variant(change)).templates) == expected


def test_a_weight_used_twice_is_not_two_weights() -> None:
    def model(shared: bool) -> Model:
        w = Writer()
        x, table = w.embedding("input_ids", "embed", w.vocab), w.rotary_table()
        for layer in range(2):
            x = w.op("Add", x, w.attention(w.norm(x, f"{layer}.1"), layer, table))
            first = w.norm(x, f"{layer}.2")
            second = w.norm(first, f"{layer}.2" if shared and layer else f"{layer}.3")
            x = w.op("Add", x, w.gated_mlp(second, layer))
        w.head(w.norm(x, "norm"))
        return w.model()

    assert len(build_graph(model(shared=False)).templates) == 4
    assert len(build_graph(model(shared=True)).templates) == 5


@pytest.mark.parametrize("structure", [sequential, parallel, post_norms, normed_sums])
@pytest.mark.parametrize("length", [1, 6])
def test_chained_blocks_give_the_models_logits(structure: Callable[..., str], length: int) -> None:
    model = decoder(3, structure)
    graph, weights, ids = build_graph(model), random_weights(model), token_ids(length, VOCAB)
    for template in (*graph.templates.values(), graph.positions):
        assert template is not None
        check_template(template)
    expected = whole(model, ids, weights)
    assert expected.std() > 0.1
    np.testing.assert_array_equal(chained(graph, ids, weights), expected)
    prefilled = chained(graph, ids, weights, is_prefill=True)
    np.testing.assert_allclose(prefilled[0], expected[0, -1:], rtol=1e-4, atol=1e-5)


def test_fields_of_an_attention_template() -> None:
    w = Writer(hidden=16, heads=4, kv_heads=2)
    x = w.embedding("input_ids", "embed", w.vocab)
    x = w.op("Add", x, w.attention(w.norm(x, "norm1"), 0, w.rotary_table(), window=8))
    x = w.op("Add", x, w.gated_mlp(w.norm(x, "norm2"), 0))
    x = w.op("Add", x, w.attention(w.norm(x, "norm3"), 1, ("cos_5", "sin_6"), window=8))
    w.head(w.op("Add", x, w.gated_mlp(w.norm(x, "norm4"), 1)))
    template = build_graph(w.model()).templates["t1"]
    assert [spec.name for spec in template.inputs] == ["x0", "p0", "p1", "position_ids"]
    assert template.caches == (CacheSpec(heads=4, kv_heads=2, key_dim=4, value_dim=4, window=8),)
    assert [(weight.role, weight.shape) for weight in template.weights] == [
        ("plain", (16,)),
        ("linear", (16, 16)),
        ("linear", (8, 16)),
        ("linear", (8, 16)),
        ("linear", (16, 16)),
    ]
    matrices = 16 * 16 + 8 * 16 + 8 * 16 + 16 * 16
    norm, reshapes, rotary, attention, sums = 16, 2 * (16 + 8 + 8), 16 + 8, 3 * 16, 16
    assert template.linear_flops == 2 * matrices + norm + reshapes + rotary + attention + sums
    assert template.attention_flops == 2 * 4 * (4 + 4)


def test_activation_bytes_are_the_peak_of_what_is_live() -> None:
    template = build_graph(decoder(2)).templates["t2"]
    hidden, ffn = 16 * 4, 40 * 4
    # up's input and output, gate's activation, the residual: before the norm's output goes
    assert template.activation_bytes == max(2 * hidden + 3 * ffn, hidden + hidden + 2 * ffn)


def test_layers_are_numbered_within_the_block() -> None:
    for template in build_graph(variant("window")).templates.values():  # one is first used by layer 1
        nodes = onnx.ModelProto.FromString(template.onnx).graph.node
        layers = [a.i for node in nodes for a in node.attribute if a.name == "layer"]
        assert layers == [0] * len(template.caches)


def test_a_template_carries_only_the_functions_it_calls() -> None:
    graph = build_graph(decoder(2))
    names = {
        id: {f.name for f in onnx.ModelProto.FromString(template.onnx).functions}
        for id, template in graph.templates.items()
    }
    assert names == {"t0": {"Embedding"}, "t1": {"Attention", "Linear"}, "t2": {"Linear"}, "t3": {"Linear"}}


def test_tied_embedding_has_a_role_in_each_block() -> None:
    w = Writer()
    x = sequential(w, w.embedding("input_ids", "embed", w.vocab), 0, w.rotary_table())
    w.op("Linear", w.norm(x, "norm"), "embed", domain="llcompile", name="logits")
    graph = build_graph(w.model())
    first, last = graph.blocks[0], graph.blocks[-1]
    assert first.weights == ("embed",)
    assert last.weights == ("norm", "embed")
    assert [weight.role for weight in graph.templates[first.template].weights] == ["embedding"]
    assert [weight.role for weight in graph.templates[last.template].weights] == ["plain", "linear"]


def test_weight_arithmetic_is_done_in_each_block_that_needs_it() -> None:
    """Gemma scales by 1 + w; the sum depends on no token, so it does not cross blocks."""
    w = Writer()
    x, table = w.embedding("input_ids", "embed", w.vocab), w.rotary_table()
    shared = w.op("Add", w.weight("shared", w.hidden), w.constant(1.0))
    for layer in range(2):
        x = w.op("Add", x, w.attention(w.op("RMSNormalization", x, shared, axis=-1), layer, table))
        x = w.op("Add", x, w.gated_mlp(w.op("RMSNormalization", x, shared, axis=-1), layer))
    w.head(x)
    model = w.model()
    graph = build_graph(model)
    assert all("shared" in block.weights for block in graph.blocks[1:5])
    assert shared not in graph.tensors
    weights, ids = random_weights(model), token_ids(4, VOCAB)
    np.testing.assert_array_equal(chained(graph, ids, weights), whole(model, ids, weights))


def test_eighty_layers_are_four_templates() -> None:
    model = decoder(80, hidden=8192, heads=64, kv_heads=8, ffn=28672, vocab=128256)
    graph = build_graph(model)
    assert (len(graph.blocks), len(graph.templates)) == (162, 4)


def test_same_input_same_bytes() -> None:
    one, other = build_graph(decoder(2, parallel)), build_graph(decoder(2, parallel))
    assert one == other
