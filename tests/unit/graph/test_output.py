"""The output head in pieces: the same logits, from blocks no larger than a layer's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

import numpy as np
import pytest

from llcompile.cost import flows
from llcompile.graph import build_graph, output_in_pieces
from llcompile.ir.check import check_graph
from llcompile.ir.graph import Graph
from llcompile.ir.model import Model
from tests.unit.graph.oracle import Arrays, chained, check_template, token_ids, whole
from tests.unit.graph.synthetic import Writer, decoder, sequential
from tests.unit.graph.test_templates import random_weights

VOCAB, HIDDEN = 400, 16  # the matrix has 6400 elements, the largest block of a layer 3 x 40 x 16


def end(w: Writer, x: str) -> None:
    """A norm, a matrix with a bias, and what caps its sums."""
    sums = w.linear(w.norm(x, "norm"), "lm_head", w.vocab, w.hidden, bias=True)
    w.op("Mul", w.op("Tanh", w.op("Mul", sums, w.constant(0.1))), w.constant(10.0), name="logits")


def capped(w: Writer, x: str) -> None:
    w.op("Tanh", w.linear(w.norm(x, "norm"), "lm_head", w.vocab, w.hidden), name="logits")


def without_norm(w: Writer, x: str) -> None:
    w.head(x)


def with_table(w: Writer, x: str) -> None:
    """The matrix is the embedding's table."""
    w.op("Linear", w.norm(x, "norm"), "embed", domain="llcompile", name="logits")


def model_with(close: Callable[[Writer, str], None], vocab: int = VOCAB, **sizes: int) -> Model:
    w = Writer(vocab=vocab, **sizes)
    x, table = w.embedding("input_ids", "embed", vocab), w.rotary_table()
    for layer in range(2):
        x = sequential(w, x, layer, table)
    close(w, x)
    return w.model()


def parts_of(weights: Arrays, model: Model) -> dict[str, np.ndarray]:
    """The weights by name, those of pieces too."""
    found = dict(weights)
    for name, source in model.weights.items():
        start = source.rows_before
        found[name] = weights[source.name][start : start + source.shape[0]]
    return found


@pytest.mark.parametrize("close", [capped, without_norm, with_table, lambda w, x: w.head(w.norm(x, "norm"))])
def test_the_pieces_make_the_models_logits(close: Callable[[Writer, str], None]) -> None:
    model = model_with(close)
    graph = build_graph(model)
    cut_model, cut = output_in_pieces(model, graph)
    assert check_graph(cut) == []
    assert (cut.output_blocks, len(cut.blocks)) == (4, len(graph.blocks) + 3)
    assert cut.blocks[:5] == graph.blocks[:5]
    for template in cut.templates.values():
        check_template(template)
    weights, ids = random_weights(model), token_ids(5, VOCAB)
    expected = whole(model, ids, weights)
    assert expected.std() > 0.1
    np.testing.assert_allclose(
        chained(cut, ids, parts_of(weights, cut_model)), expected, rtol=1e-4, atol=1e-5
    )


def elements(graph: Graph, block: int) -> int:
    weights = graph.templates[graph.blocks[block].template].weights
    return sum(prod(weight.shape) for weight in weights if weight.role == "linear")


def test_pieces_are_no_larger_than_the_largest_block_of_a_layer_but_for_whole_units() -> None:
    model, cut = output_in_pieces(model_with(end), build_graph(model_with(end)))
    rows = [elements(cut, b) // HIDDEN for b in range(cut.output_start, len(cut.blocks))]
    assert rows == [128, 128, 128, 16]  # 1920 elements would be 120 rows
    names = [cut.blocks[b].weights[-2:] for b in range(cut.output_start, len(cut.blocks))]
    assert names[1] == ("lm_head.weight[128:256]", "lm_head.bias[128:256]")
    assert model.weights[names[1][0]] == model.weights["lm_head.weight"].part(128, 256)
    middle = {cut.blocks[b].template for b in range(cut.output_start + 1, len(cut.blocks) - 1)}
    assert len(middle) == 1  # one library function for all pieces but the ends


def test_an_output_head_that_is_no_larger_than_a_layers_block_stays_whole() -> None:
    model = decoder(2)
    graph = build_graph(model)
    assert output_in_pieces(model, graph) == (model, graph)


def beside(w: Writer, x: str) -> None:
    """Logits that depend on the stream beside the matrix, too."""
    hidden = w.norm(x, "norm")
    mean = w.op("ReduceMean", hidden, w.constant([-1], "int64"), keepdims=1)
    w.op("Mul", w.linear(hidden, "lm_head", w.vocab, w.hidden), mean, name="logits")


def twice(w: Writer, x: str) -> None:
    """A matrix that is read in another way, too."""
    sums = w.linear(w.norm(x, "norm"), "lm_head", w.vocab, w.hidden, bias=True)
    w.op("Add", sums, "lm_head.bias", name="logits")


@pytest.mark.parametrize("close", [beside, twice])
def test_what_is_more_than_one_product_stays_whole(close: Callable[[Writer, str], None]) -> None:
    model = model_with(close)
    graph = build_graph(model)
    assert output_in_pieces(model, graph) == (model, graph)


@pytest.mark.parametrize("close", [end, without_norm])
def test_what_travels_is_what_travels_without_pieces(close: Callable[[Writer, str], None]) -> None:
    model = model_with(close)
    graph = build_graph(model)
    assert flows(output_in_pieces(model, graph)[1], 16) == flows(graph, 16)


def test_a_graph_that_says_wrong_which_blocks_make_logits_is_told() -> None:
    graph = build_graph(decoder(2))
    assert any("has a cache" in text for text in check_graph(replace(graph, output_blocks=3)))
    assert any("are said to make" in text for text in check_graph(replace(graph, output_blocks=0)))


def test_more_pieces_are_made_where_that_many_are_asked_for() -> None:
    model = model_with(capped)
    _, cut = output_in_pieces(model, build_graph(model), 7)
    assert cut.output_blocks == 7 == -(-VOCAB // 64)
    assert output_in_pieces(model, build_graph(model), 2)[1] == output_in_pieces(model, build_graph(model))[1]
