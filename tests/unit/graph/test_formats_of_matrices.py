"""Formats of matrices: blocks that differ in them are of different templates, which are otherwise the same."""

from __future__ import annotations

from dataclasses import replace

from llcompile.graph import build_graph, output_in_pieces, with_formats
from llcompile.ir.check import check_graph
from llcompile.ir.graph import Graph
from tests.models import loaded
from tests.unit.graph.test_output import end, model_with


def formats(graph: Graph, block: int) -> list[str]:
    return [w.format for w in graph.templates[graph.blocks[block].template].weights if w.role == "linear"]


def test_blocks_that_differ_in_formats_are_of_different_templates() -> None:
    graph = build_graph(loaded("llama")[1])
    alike = [block for block in graph.blocks if block.template == graph.blocks[1].template]
    assert len(alike) > 1
    matrices = [
        name
        for name, weight in zip(alike[1].weights, graph.templates[alike[1].template].weights, strict=True)
        if weight.role == "linear"
    ]
    made = with_formats(graph, dict.fromkeys(matrices, "q6"), dict.fromkeys(matrices, 0.25))
    assert check_graph(made) == []
    assert formats(made, alike[0].id) == [""] * len(matrices)
    assert formats(made, alike[1].id) == ["q6"] * len(matrices)
    assert made.blocks[alike[1].id].template != made.blocks[alike[0].id].template
    assert made.blocks[alike[1].id].divergence == 0.25 * len(matrices)
    assert made.blocks[alike[0].id].divergence is None
    one, other = (made.templates[made.blocks[alike[i].id].template] for i in (0, 1))
    plain = tuple(replace(weight, format="") for weight in other.weights)
    assert replace(other, id=one.id, weights=plain) == one


def test_a_table_that_is_a_matrix_too_keeps_its_rows() -> None:
    graph = build_graph(loaded("gemma3")[1])
    name = graph.blocks[0].weights[0]
    assert name in graph.blocks[-1].weights
    made = with_formats(graph, {name: "q6"}, {name: 0.5})
    assert [w.format for w in made.templates[made.blocks[0].template].weights if w.role == "embedding"] == [
        ""
    ]
    assert formats(made, -1) == ["q6"]
    assert (made.blocks[0].divergence, made.blocks[-1].divergence) == (None, 0.5)


def test_the_output_head_s_pieces_have_its_format() -> None:
    model = model_with(end)
    graph = build_graph(model)
    head = zip(graph.templates[graph.blocks[-1].template].weights, graph.blocks[-1].weights, strict=True)
    made = with_formats(graph, {name: "q5" for weight, name in head if weight.role == "linear"}, {})
    assert formats(made, -1) == ["q5"]
    _, cut = output_in_pieces(model, made)
    assert cut.output_blocks > 1
    assert all(formats(cut, block) == ["q5"] for block in range(cut.output_start, len(cut.blocks)))
