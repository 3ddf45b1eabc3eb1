"""Blocks follow from liveness, whatever the layer's structure and the tensors' names."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import onnx
import pytest

from llcompile.dataflow.nodes import ATTENTION, EMBEDDING, LINEAR
from llcompile.dataflow.shapes import infer_specs
from llcompile.graph import build_graph
from llcompile.graph.build import simplified_dataflow
from llcompile.graph.cuts import find_cuts
from llcompile.ir.graph import Graph
from llcompile.ir.model import Model
from tests.unit.graph.synthetic import Writer, decoder, normed_sums, parallel, post_norms, sequential

STRUCTURES = {
    "sequential": sequential,
    "parallel": parallel,
    "post_norms": post_norms,
    "normed_sums": normed_sums,
}


def ops(graph: Graph, block: int) -> tuple[str, ...]:
    return graph.templates[graph.blocks[block].template].ops


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("layers", [1, 2, 5])
def test_two_blocks_a_layer_embedding_and_head(structure: str, layers: int) -> None:
    graph = build_graph(decoder(layers, STRUCTURES[structure]))
    assert len(graph.blocks) == 2 * layers + 2
    assert ops(graph, 0) == (EMBEDDING,)
    for layer in range(layers):
        attention, mlp = ops(graph, 2 * layer + 1), ops(graph, 2 * layer + 2)
        assert (attention.count(ATTENTION), attention.count(LINEAR)) == (1, 4)
        assert (mlp.count(ATTENTION), mlp.count(LINEAR)) == (0, 3)
    assert ops(graph, 2 * layers + 1).count(LINEAR) == 1
    assert [b.last_row_only for b in graph.blocks] == [False] * (2 * layers) + [True] * 2


@pytest.mark.parametrize("structure", STRUCTURES)
def test_equal_layers_are_equal_blocks_from_first_to_last(structure: str) -> None:
    graph = build_graph(decoder(4, STRUCTURES[structure]))
    assert [block.template for block in graph.blocks] == ["t0", *["t1", "t2"] * 4, "t3"]


def test_one_tensor_crosses_each_cut_of_a_sequential_model() -> None:
    graph = build_graph(decoder(3))
    for before, after in pairwise(graph.blocks):
        assert len(before.outputs) == 1
        assert before.outputs[0] == after.inputs[0]


def test_parallel_layer_reads_the_residual_in_both_blocks() -> None:
    graph = build_graph(decoder(2, parallel))
    embedding, attention, mlp = graph.blocks[:3]
    residual = embedding.outputs[0]
    assert graph.consumers(residual) == (attention.id, mlp.id)
    assert set(mlp.inputs) == {residual, attention.outputs[0]}


def test_the_cuts_hold_the_fewest_bytes_between_two_attentions() -> None:
    flow = simplified_dataflow(decoder(4))
    cuts = find_cuts(flow, infer_specs(flow))
    anchors = [i for i, node in enumerate(cuts.order) if node.op == ATTENTION]
    for start, stop in pairwise(anchors):
        least = min(cuts.live_bytes[start:stop])
        inside = [cut - 1 for cut in cuts.stops if start < cut <= stop]
        assert [cuts.live_bytes[i] for i in inside] == [least, least]


def test_live_bytes_of_a_hand_counted_graph() -> None:
    w = Writer(hidden=16, vocab=50)
    x = w.embedding("input_ids", "embed", 50)
    x = w.op("Add", x, w.attention(x, 0, None))
    w.head(w.op("Add", x, w.mlp(x, 0)))
    flow = simplified_dataflow(w.model())
    cuts = find_cuts(flow, infer_specs(flow))
    tensor, kv, ffn = 16 * 4, 8 * 4, 40 * 4
    projections = [
        2,
        2,
        2,
        *([2 + kv / tensor] * 3),
        *([2 + 2 * kv / tensor] * 3),
    ]  # x, then q, k, v as they come
    attention = [2, 2, 2, 2, 1]  # attention, transpose, reshape, output projection, sum
    mlp = [1 + ffn / tensor, 1 + ffn / tensor, 2, 1]
    assert cuts.live_bytes == tuple(int(tensor * n) for n in [1, *projections, *attention, *mlp, 0])


def renamed(model: Model) -> Model:
    """The same graph, every name scrambled."""
    proto = onnx.ModelProto.FromString(model.onnx)
    names: dict[str, str] = {n: n for n in ("", "input_ids", "position_ids", "logits")}
    graph = proto.graph
    everything = [n for node in graph.node for n in (*node.input, *node.output)]
    for name in everything:
        names.setdefault(name, f"t{len(names) * 7919 % 10007}")
    for node in graph.node:
        node.name = ""
        node.input[:] = [names[n] for n in node.input]
        node.output[:] = [names[n] for n in node.output]
    for value in (*graph.input, *graph.initializer):
        value.name = names[value.name]
    weights = {names[n]: replace(s, name=names[n]) for n, s in model.weights.items()}
    return replace(model, onnx=proto.SerializeToString(), weights=weights)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_names_do_not_matter(structure: str) -> None:
    model = decoder(3, STRUCTURES[structure])
    one, other = build_graph(model), build_graph(renamed(model))
    assert [b.template for b in one.blocks] == [b.template for b in other.blocks]
    assert [t.onnx for t in one.templates.values()] == [t.onnx for t in other.templates.values()]


def test_order_of_the_file_does_not_matter() -> None:
    model = decoder(2, parallel)
    proto = onnx.ModelProto.FromString(model.onnx)
    rng = np.random.default_rng(0)
    known = {value.name for value in (*proto.graph.input, *proto.graph.initializer)}
    pending, shuffled = list(proto.graph.node), []
    while pending:
        ready = [i for i, node in enumerate(pending) if known.issuperset(node.input)]
        node = pending.pop(int(rng.choice(ready)))
        known.update(node.output)
        shuffled.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(shuffled)
    one, other = build_graph(model), build_graph(replace(model, onnx=proto.SerializeToString()))
    assert one.blocks == other.blocks
    assert {k: t.onnx for k, t in one.templates.items()} == {k: t.onnx for k, t in other.templates.items()}


def learned_positions(layers: int) -> Model:
    """OPT: a learned table read at position + 2, and its row added to the token's."""
    w = Writer()
    rows = w.embedding(w.op("Add", "position_ids", w.constant(2, "int64")), "positions", 66)
    x = w.op("Add", w.embedding("input_ids", "embed", w.vocab), rows)
    for layer in range(layers):
        x = w.op("Add", x, w.attention(w.norm(x, f"{layer}.1"), layer, None, bias=True))
        x = w.op("Add", x, w.mlp(w.norm(x, f"{layer}.2"), layer))
    w.head(w.norm(x, "norm"))
    return w.model()


def test_learned_positions_stay_in_the_embedding_block() -> None:
    graph = build_graph(learned_positions(2))
    assert sorted(ops(graph, 0)) == ["Add", "Add", EMBEDDING, EMBEDDING]
    assert graph.blocks[0].inputs == ("input_ids", "position_ids")
    assert graph.positions is None
    assert len(graph.blocks) == 6


def test_scaled_and_normed_embedding_belongs_to_the_first_block() -> None:
    w = Writer()
    x = w.op("Mul", w.embedding("input_ids", "embed", w.vocab), w.constant(4.0))
    x = sequential(w, w.norm(x, "embed_norm"), 0, w.rotary_table())
    w.head(w.norm(x, "norm"))
    graph = build_graph(w.model())
    assert ops(graph, 0) == (EMBEDDING, "Mul", "RMSNormalization")


def test_capped_logits_belong_to_the_head() -> None:
    w = Writer()
    x = sequential(w, w.embedding("input_ids", "embed", w.vocab), 0, w.rotary_table())
    y = w.linear(w.norm(x, "norm"), "lm_head", w.vocab, w.hidden)
    capped = w.op("Tanh", w.op("Div", y, w.constant(30.0)))
    w.op("Mul", capped, w.constant(30.0), name="logits")
    graph = build_graph(w.model())
    assert ops(graph, 3) == ("RMSNormalization", LINEAR, "Div", "Tanh", "Mul")


def test_the_head_keeps_its_matrix_where_logits_are_narrow() -> None:
    """Five logits are fewer bytes than the hidden state, and yet no place to cut."""
    w = Writer(vocab=5)
    x = sequential(w, w.embedding("input_ids", "embed", 5), 0, w.rotary_table())
    w.op("Tanh", w.linear(w.norm(x, "norm"), "lm_head", 5, w.hidden), name="logits")
    assert ops(build_graph(w.model()), 3) == ("RMSNormalization", LINEAR, "Tanh")


def test_two_residual_streams_still_give_two_blocks_a_layer() -> None:
    """No cut of this model has one live tensor: the least is two, and it is found."""
    w = Writer()
    x = w.embedding("input_ids", "embed", w.vocab)
    y, table = w.linear(x, "second", w.hidden, w.hidden), w.rotary_table()
    for layer in range(3):
        a = w.attention(w.norm(w.op("Add", x, y), f"{layer}.1"), layer, table)
        x, y = w.op("Add", x, a), w.op("Sub", y, a)
        m = w.gated_mlp(w.norm(w.op("Mul", x, y), f"{layer}.2"), layer)
        x, y = w.op("Add", x, m), w.op("Sub", y, m)
    w.head(w.norm(w.op("Add", x, y), "norm"))
    graph = build_graph(w.model())
    assert len(graph.blocks) == 8
    assert [len(b.outputs) for b in graph.blocks[1:5]] == [2, 2, 2, 2]
    assert [b.template for b in graph.blocks[2:6]] == ["t2", "t3", "t2", "t3"]


def test_attention_without_an_mlp_is_one_block() -> None:
    w = Writer()
    x, table = w.embedding("input_ids", "embed", w.vocab), w.rotary_table()
    for layer in range(3):
        x = w.op("Add", x, w.attention(w.norm(x, f"{layer}.norm"), layer, table))
    w.head(w.norm(x, "norm"))
    graph = build_graph(w.model())
    assert [block.template for block in graph.blocks] == ["t0", "t1", "t1", "t1", "t2"]
    assert ops(graph, 4) == ("RMSNormalization", LINEAR)


def narrow_attention(w: Writer, x: str, layer: int, table: tuple[str, str]) -> str:
    """Four query heads and one key and value head of 4 in a model of width 64."""
    q = w.split_heads(w.linear(x, f"{layer}.q", 16, 64), 4)
    k = w.split_heads(w.linear(x, f"{layer}.k", 4, 64), 1)
    v = w.split_heads(w.linear(x, f"{layer}.v", 4, 64), 1)
    q, k = (w.op("RotaryEmbedding", value, *table) for value in (q, k))
    a = w.op("Attention", q, k, v, domain="llcompile", layer=layer, scale=0.5)
    merged = w.op("Reshape", w.op("Transpose", a, perm=[0, 2, 1, 3]), w.constant([1, -1, 16], "int64"))
    return w.linear(merged, f"{layer}.o", 64, 16)


def test_parallel_layer_with_narrow_attention() -> None:
    """Cutting inside the next attention would leave fewer bytes live than beside this one's output."""
    w = Writer(hidden=64, heads=16)
    x, table = w.embedding("input_ids", "embed", w.vocab), w.rotary_table()
    for layer in range(2):
        mlp = w.gated_mlp(w.norm(x, f"{layer}.norm2"), layer)
        x = w.op("Add", w.op("Add", mlp, narrow_attention(w, w.norm(x, f"{layer}.norm1"), layer, table)), x)
    w.head(w.norm(x, "norm"))
    graph = build_graph(w.model())
    assert [block.template for block in graph.blocks] == ["t0", "t1", "t2", "t1", "t2", "t3"]
    assert ATTENTION in ops(graph, 1)
    assert LINEAR in ops(graph, 2)


def test_token_ids_stay_in_the_first_block() -> None:
    """A second lookup that only layer 1 uses travels there as a tensor; the ids do not."""
    w = Writer()
    x, table = w.embedding("input_ids", "embed", w.vocab), w.rotary_table()
    x = sequential(w, x, 0, table)
    x = w.op("Add", x, w.embedding("input_ids", "late", w.vocab))
    w.head(w.norm(sequential(w, x, 1, table), "norm"))
    graph = build_graph(w.model())
    assert [b.id for b in graph.blocks if "input_ids" in b.inputs] == [0]
    assert len(graph.blocks[0].outputs) == 2
