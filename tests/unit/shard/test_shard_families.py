"""Every family's blocks, cut for groups of two to eight: the pieces together make what the block makes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from llcompile.graph import build_graph
from llcompile.graph.cuts import ATTENTION
from llcompile.quantize import read_rows
from llcompile.shard import Split, shard, split
from tests import models
from tests.unit.graph.oracle import check_template
from tests.unit.shard.together import Case, cases, error, together

SHARES = (
    (0.5, 0.5), (0.7, 0.3), (0.2, 0.3, 0.5), (0.25, 0.25, 0.25, 0.25), (0.1, 0.4, 0.3, 0.2), (0.125,) * 8,
    (0.05, 0.2, 0.1, 0.15, 0.05, 0.3, 0.05, 0.1),
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    name: str
    heads: int
    cases: dict[str, Case]


@pytest.fixture(scope="module", params=models.FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    _, model = models.loaded(request.param)
    graph = build_graph(model)
    weights = {name: read_rows(source, 0, source.shape[0]) for name, source in model.weights.items()}
    prompt = models.prompt(29)
    ids = {"input_ids": np.array([prompt]), "position_ids": np.arange(29)[None]}
    heads = 3 if request.param == "neox" else 6
    return Family(request.param, heads, cases(graph, ids, weights))


@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_the_pieces_together_make_what_the_block_makes(family: Family, shares: tuple[float, ...]) -> None:
    for case in family.cases.values():
        found = split(case.template)
        assert isinstance(found, Split), found
        for sums in (len(shares), 1):
            pieces = shard(found, shares, sums, 1)
            if isinstance(pieces, str):  # six heads for eight devices, three for four
                assert ATTENTION in case.template.ops
                assert family.heads < len(shares)
                assert "heads" in pieces
                continue
            made = together(case, pieces)
            for output, expected in zip(made, case.outputs, strict=True):
                assert error(output, expected) < 1e-5


def test_pieces_are_templates_like_any_other(family: Family) -> None:
    for case in family.cases.values():
        found = split(case.template)
        assert isinstance(found, Split)
        pieces = shard(found, (0.6, 0.4), 2, 1)
        assert not isinstance(pieces, str)
        for piece in (*pieces.shards, pieces.tail):
            check_template(piece.template)
            assert len(piece.cuts) == len(piece.template.weights)
        whole = case.template
        shards = [piece.template for piece in pieces.shards]
        # Every operation of the matrices, and of attention, is done once.
        assert sum(t.attention_flops for t in shards) == whole.attention_flops
        linear = sum(np.prod(w.shape) for t in shards for w in t.weights if w.role == "linear")
        assert linear == sum(np.prod(w.shape) for w in whole.weights if w.role == "linear")
        assert sum(c.kv_heads for t in shards for c in t.caches) == sum(c.kv_heads for c in whole.caches)
        assert not pieces.tail.template.caches


def test_embedding_and_head_are_not_cut(family: Family) -> None:
    _, model = models.loaded(family.name)
    graph = build_graph(model)
    for block in (graph.blocks[0], graph.blocks[-1]):
        assert isinstance(split(graph.templates[block.template]), str)
