"""The output head in pieces gives the bits that it gives whole, in every format of weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from llcompile.graph import build_graph, output_in_pieces
from llcompile.ir.graph import Block, Graph, Template
from llcompile.ir.model import Model
from llcompile.ir.packing import layout_of
from llcompile.lower.tiles import tile_rows
from llcompile.quantize import pack
from llrun.memory import aligned_copy
from tests.unit.graph.synthetic import Writer, random_weights
from tests.unit.graph.test_output import capped, end, model_with
from tests.unit.lower.harness import PROCESSORS, Library, runnable

HIDDEN, VOCAB = 96, 1000


def packed(
    library: Library, template: Template, values: Sequence[np.ndarray], quant: str, isa: str
) -> list[np.ndarray]:
    """What the functions of `template` take for its weights."""
    found = []
    for index, weight in enumerate(template.weights):
        layout = layout_of(weight.role, quant, tile_rows(PROCESSORS[isa]))
        parts = pack(values[index], layout, weight.name)
        params = (param for param in library.lowered[template.id].params if param.weight == index)
        found += [aligned_copy(parts[param.part]) for param in params]
    return found


def logits(
    model: Model, graph: Graph, blocks: Sequence[Block], x: np.ndarray, quant: str, isa: str, out: Path
) -> list[np.ndarray]:
    """Of all of x (1, n, features), what comes into the first of `blocks`, and of its last token alone."""
    templates = {block.template: graph.templates[block.template] for block in blocks}
    library, weights = Library([*templates.values()], quant, isa, out), random_weights(model)
    results = []
    for mode, given in (("prefill", x), ("decode", x[:, -1:])):
        tensors = {blocks[0].inputs[0]: given}
        for block in blocks:
            sources = [model.weights[name] for name in block.weights]
            starts = [source.rows_before for source in sources]
            values = [weights[s.name][a : a + s.shape[0]] for s, a in zip(sources, starts, strict=True)]
            template = templates[block.template]
            library.params[template.id] = packed(library, template, values, quant, isa)
            made = library.call(template.id, mode, [tensors[name] for name in block.inputs])
            tensors.update(zip(block.outputs, made, strict=True))
        results.append(tensors["logits"])
    return results


@pytest.mark.parametrize("quant", ["q4", "q8", "f16", "f32"])
@pytest.mark.parametrize("close", [capped, end])
def test_pieces_give_the_bits_of_the_whole(
    close: Callable[[Writer, str], None], quant: str, tmp_path: Path
) -> None:
    isa = runnable()[-1]
    model = model_with(close, VOCAB, hidden=HIDDEN, ffn=128)
    graph = build_graph(model)
    cut_model, cut = output_in_pieces(model, graph)
    assert cut.output_blocks > 2
    x = np.random.default_rng(1).standard_normal((1, 13, HIDDEN)).astype(np.float32)
    whole = logits(model, graph, graph.blocks[-1:], x, quant, isa, tmp_path / "whole.so")
    pieces = logits(cut_model, cut, cut.blocks[cut.output_start :], x, quant, isa, tmp_path / "cut.so")
    for got, want in zip(pieces, whole, strict=True):
        assert want.std() > 0.1
        np.testing.assert_array_equal(got, want)
