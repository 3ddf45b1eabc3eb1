"""What depends on positions alone is computed in its one block, or by the positions template."""

from __future__ import annotations

import numpy as np

from llcompile.graph import build_graph
from tests.unit.graph.oracle import chained, token_ids, whole
from tests.unit.graph.synthetic import VOCAB, Writer, decoder, random_weights, sequential


def test_shared_tables_are_one_template_and_never_live() -> None:
    graph = build_graph(decoder(3))
    assert graph.positions is not None
    assert graph.positions.id == "positions"
    tables = [spec.name for spec in graph.positions.outputs]
    assert [spec.name for spec in graph.positions.inputs] == ["position_ids"]
    assert graph.positions.weights == ()
    for block in graph.blocks:
        assert graph.producer(tables[0]) is None
        assert set(tables).isdisjoint(block.outputs)
        assert set(tables).issubset(block.inputs) == bool(graph.templates[block.template].caches)


def test_a_table_of_one_block_is_computed_in_it() -> None:
    graph = build_graph(decoder(1))
    attention = graph.templates[graph.blocks[1].template]
    assert graph.positions is None
    assert {"Cos", "Sin"} <= set(attention.ops)
    assert [spec.name for spec in attention.inputs] == ["x0", "position_ids"]


def two_tables(layers: int) -> Writer:
    """Gemma 3: local layers rotate by one table, every third by another."""
    w = Writer()
    x = w.embedding("input_ids", "embed", w.vocab)
    local, far = w.rotary_table(100.0), w.rotary_table(10000.0)
    for layer in range(layers):
        x = sequential(w, x, layer, far if layer % 3 == 2 else local)
    w.head(w.norm(x, "norm"))
    return w


def test_two_pairs_of_tables() -> None:
    model = two_tables(6).model()
    graph = build_graph(model)
    assert graph.positions is not None
    assert len(graph.positions.outputs) == 4
    assert len(graph.templates) == 4
    used = [tuple(name for name in b.inputs if name.startswith(("cos", "sin"))) for b in graph.blocks[1:-1:2]]
    assert used[0] == used[1] == used[3] == used[4] != used[2] == used[5]
    weights, ids = random_weights(model), token_ids(5, VOCAB)
    np.testing.assert_array_equal(chained(graph, ids, weights), whole(model, ids, weights))


def test_the_one_far_layer_makes_its_own_table() -> None:
    model = two_tables(4).model()
    graph = build_graph(model)
    assert graph.positions is not None
    assert len(graph.positions.outputs) == 2
    assert "Cos" in graph.templates[graph.blocks[5].template].ops
    weights, ids = random_weights(model), token_ids(5, VOCAB)
    np.testing.assert_array_equal(chained(graph, ids, weights), whole(model, ids, weights))


def test_arithmetic_repeated_per_layer_is_merged() -> None:
    w = Writer()
    x = w.embedding("input_ids", "embed", w.vocab)
    for layer in range(3):
        x = sequential(w, x, layer, w.rotary_table())  # cos and sin again for every layer
    w.head(w.norm(x, "norm"))
    graph = build_graph(w.model())
    assert graph.positions is not None
    assert graph.positions.ops == ("Unsqueeze", "Cast", "Mul", "Cos", "Sin")
    assert graph.positions == build_graph(decoder(3)).positions


def test_a_name_of_the_graph_does_not_clash_with_a_canonical_one() -> None:
    w = Writer()
    x = w.embedding("input_ids", "embed", w.vocab)
    cos, sin = w.rotary_table()
    table = w.op("Neg", cos, name="v0"), w.op("Neg", sin, name="v3")
    for layer in range(2):
        x = sequential(w, x, layer, table)
    w.head(w.norm(x, "norm"))
    model = w.model()
    graph = build_graph(model)
    weights, ids = random_weights(model), token_ids(3, VOCAB)
    np.testing.assert_array_equal(chained(graph, ids, weights), whole(model, ids, weights))


def test_a_learned_table_read_by_several_blocks_is_an_activation() -> None:
    """Positions and a weight: the weight has one home, so what it gives travels."""
    w = Writer()
    rows = w.embedding("position_ids", "positions", 64)
    x = w.embedding("input_ids", "embed", w.vocab)
    for layer in range(2):
        x = sequential(w, w.op("Add", x, rows), layer, w.rotary_table())
    w.head(w.norm(x, "norm"))
    model = w.model()
    graph = build_graph(model)
    assert len(graph.blocks[0].outputs) == 2
    weights, ids = random_weights(model), token_ids(4, VOCAB)
    np.testing.assert_array_equal(chained(graph, ids, weights), whole(model, ids, weights))
