"""The printed graph of a sequential and a parallel model, and the dataflow passes, against committed texts.

UPDATE_GOLDEN=1 rewrites them; read the difference before committing it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llcompile.dataflow.nodes import Dataflow, read_dataflow
from llcompile.graph import build_graph, output_in_pieces
from llcompile.graph.printer import print_dataflow
from llcompile.graph.simplify import DropDeadNodes, MergePositionArithmetic
from llcompile.ir.printer import print_graph
from tests.unit.graph.synthetic import Writer, decoder, parallel, sequential

HERE = Path(__file__).parent


def compare(text: str, name: str) -> None:
    path = HERE / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize(("name", "layer"), [("llama", sequential), ("neox", parallel)])
def test_printed_graph(name: str, layer: object) -> None:
    compare(print_graph(build_graph(decoder(2, layer))), f"graph_{name}.txt")  # type: ignore[arg-type]


def test_output_in_pieces() -> None:
    model = decoder(1, vocab=400)
    before = build_graph(model)
    after = output_in_pieces(model, before)[1]
    compare(f"{print_graph(before)}\n---\n\n{print_graph(after)}", "graph_output_in_pieces.txt")


def wasteful() -> Dataflow:
    """A branch nobody reads, and a position table unsqueezed once a layer."""
    w = Writer()
    x = w.embedding("input_ids", "embed", w.vocab)
    w.op("Relu", w.norm(x, "unused"))
    cos, sin = w.rotary_table()
    for _ in range(2):
        axes = w.constant([1], "int64")
        x = w.op("Mul", x, w.op("Squeeze", w.op("Unsqueeze", cos, axes), axes))
    w.op("Mul", x, sin, name="logits")
    return read_dataflow(w.model())


def test_drop_dead_nodes() -> None:
    before = wasteful()
    after = DropDeadNodes().run(before)
    compare(f"{print_dataflow(before)}\n---\n\n{print_dataflow(after)}", "graph_drop_dead_nodes.txt")


def test_merge_position_arithmetic() -> None:
    before = DropDeadNodes().run(wasteful())
    after = MergePositionArithmetic().run(before)
    compare(
        f"{print_dataflow(before)}\n---\n\n{print_dataflow(after)}", "graph_merge_position_arithmetic.txt"
    )
