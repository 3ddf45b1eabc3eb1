"""Every family, from its Hugging Face directory: the blocks chained give transformers' logits."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest

from llcompile.bundle import graph_record
from llcompile.bundle.records import stage_records, transmission_records
from llcompile.cost import flows
from llcompile.dataflow.nodes import ATTENTION, EMBEDDING, LINEAR
from llcompile.frontend import load_model
from llcompile.graph import build_graph
from llcompile.ir.graph import Graph
from llcompile.ir.model import Model, WeightSource
from llcompile.ir.plan import Stage
from llcompile.partition.transmissions import transmissions
from llrun.programs.transmissions import transmissions as from_graph
from tests import models
from tests.unit.graph.oracle import chained, check_template, whole

# Attention blocks differ where layers do: windows (qwen2, gemma), rotary tables (gemma 3), scales (gpt2).
ATTENTION_TEMPLATES = {"qwen2": 2, "gemma2": 2, "gemma3": 2, "gpt2": 3}


@dataclass(frozen=True)
class Case:
    family: str
    directory: Path
    model: Model
    graph: Graph
    layers: int

    def ops(self, block: int) -> tuple[str, ...]:
        return self.graph.templates[self.graph.blocks[block].template].ops


@pytest.fixture(scope="module", params=models.FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    directory = models.save(request.param, tmp_path_factory.mktemp(request.param))
    model = load_model(str(directory))
    layers = models.FAMILIES[request.param]().config.num_hidden_layers
    return Case(request.param, directory, model, build_graph(model), layers)


def read(source: WeightSource) -> np.ndarray:
    assert (source.dtype, source.path is None) == ("f32", False)
    shape = source.shape[::-1] if source.transpose else source.shape
    stored = np.fromfile(str(source.path), np.float32, int(np.prod(shape)), offset=source.offset).reshape(
        shape
    )
    return np.ascontiguousarray(stored.T) if source.transpose else stored


def test_two_blocks_a_layer_embedding_and_head(case: Case) -> None:
    blocks, layers = case.graph.blocks, case.layers
    assert len(blocks) == 2 * layers + 2
    assert EMBEDDING in case.ops(0)
    assert LINEAR not in case.ops(0)
    for layer in range(layers):
        attention, mlp = case.ops(2 * layer + 1), case.ops(2 * layer + 2)
        assert (attention.count(ATTENTION), mlp.count(ATTENTION)) == (1, 0)
        assert attention.count(LINEAR) == (2 if case.family in ("phi3", "gpt2", "neox", "bloom") else 4)
        assert mlp.count(LINEAR) == (2 if case.family in ("phi3", "gpt2", "opt", "neox", "bloom") else 3)
    assert case.ops(2 * layers + 1).count(LINEAR) == 1
    assert [b.id for b in blocks if b.last_row_only] == [2 * layers, 2 * layers + 1]


def test_one_template_for_each_distinct_block(case: Case) -> None:
    assert len(case.graph.templates) == 3 + ATTENTION_TEMPLATES.get(case.family, 1)
    assert len({block.template for block in case.graph.blocks[2:-1:2]}) == 1


def test_what_crosses_a_cut(case: Case) -> None:
    """The residual stream alone; beside it attention's output in a parallel layer."""
    for block in case.graph.blocks[:-1]:
        assert len(block.outputs) == 1
        readers = case.graph.consumers(block.outputs[0])
        is_skipping = case.family == "neox" and block.id % 2 == 0 and block.id < 2 * case.layers
        assert readers == ((block.id + 1, block.id + 2) if is_skipping else (block.id + 1,))


def test_the_map_derived_from_the_graph_is_the_planners(case: Case) -> None:
    """Every way of giving blocks to two workers between the head's ends."""
    record, planned = graph_record(case.graph), flows(case.graph, 16)
    for cuts in combinations(range(1, len(case.graph.blocks)), 3):
        edges = pairwise((0, *cuts, len(case.graph.blocks)))
        stages = [Stage.on(name, *edge) for name, edge in zip("habh", edges, strict=True)]
        due = transmission_records(transmissions(stages, planned))
        assert from_graph(record, stage_records(stages)) == due, stages


def test_rotary_tables_are_positions_never_sent(case: Case) -> None:
    if case.family in ("gpt2", "opt", "bloom"):
        assert case.graph.positions is None
        return
    assert case.graph.positions is not None
    assert len(case.graph.positions.outputs) == 2
    assert all(isinstance(spec.shape[-1], int) for spec in case.graph.positions.outputs)


def test_every_template_is_a_valid_model(case: Case) -> None:
    templates = [*case.graph.templates.values(), *filter(None, [case.graph.positions])]
    for template in templates:
        check_template(template)


def test_every_weight_is_used_where_it_belongs(case: Case) -> None:
    used = {name for block in case.graph.blocks for name in block.weights}
    assert used == set(case.model.weights)
    for block in case.graph.blocks:
        template = case.graph.templates[block.template]
        shapes = [tuple(case.model.weights[name].shape) for name in block.weights]
        assert shapes == [weight.shape for weight in template.weights]


def test_chained_blocks_give_the_logits_of_transformers(case: Case) -> None:
    prompt = models.prompt(23)
    ids = {"input_ids": np.array([prompt]), "position_ids": np.arange(23)[None]}
    weights = {name: read(source) for name, source in case.model.weights.items()}
    logits = chained(case.graph, ids, weights)
    np.testing.assert_array_equal(logits, whole(case.model, ids, weights))
    expected = models.reference_logits(case.directory, prompt)
    np.testing.assert_allclose(logits[0], expected, rtol=1e-3, atol=1e-3 * float(np.abs(expected).max()))
    prefilled = chained(case.graph, ids, weights, is_prefill=True)
    np.testing.assert_allclose(prefilled[0], logits[0, -1:], rtol=1e-3, atol=1e-3 * float(expected.std()))
