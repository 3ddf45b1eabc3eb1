"""The checker finds every way a graph can be broken, and nothing in a sound one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from llcompile.graph import build_graph
from llcompile.ir.check import check_graph
from llcompile.ir.graph import Block, Graph, Template, TensorSpec, WeightParam
from tests.unit.graph.synthetic import decoder, parallel

GRAPH = build_graph(decoder(2, parallel))
Edit = Callable[[Graph], Graph]


def block(number: int, /, **fields: object) -> Edit:
    def edit(graph: Graph) -> Graph:
        blocks = tuple(replace(b, **fields) if b.id == number else b for b in graph.blocks)  # type: ignore[arg-type]
        return replace(graph, blocks=blocks)

    return edit


def template(id: str, change: Callable[[Template], Template]) -> Edit:
    return lambda graph: replace(graph, templates={**graph.templates, id: change(graph.templates[id])})


def tensor(key: str, /, **fields: object) -> Edit:
    def edit(graph: Graph) -> Graph:
        spec = replace(graph.tensors[key], **fields)  # type: ignore[arg-type]
        return replace(graph, tensors={**graph.tensors, key: spec})

    return edit


def without_tensor(graph: Graph) -> Graph:
    return replace(graph, tensors={n: s for n, s in graph.tensors.items() if n != "add_30"})


def swap_blocks(graph: Graph) -> Graph:
    b = graph.blocks
    return replace(graph, blocks=(b[0], replace(b[2], id=1), replace(b[1], id=2), *b[3:]))


def first(name: str) -> TensorSpec:
    return TensorSpec(name, "float32", (1, "n", 16))


def reversed_inputs(t: Template) -> Template:
    return replace(t, inputs=t.inputs[::-1])


def positions(**fields: object) -> Edit:
    assert GRAPH.positions is not None
    changed = replace(GRAPH.positions, **fields)  # type: ignore[arg-type]
    return lambda graph: replace(graph, positions=changed)


BLOCK = GRAPH.blocks
CASES: dict[str, tuple[Edit, str]] = {
    "no blocks": (lambda g: replace(g, blocks=()), "the graph has no blocks"),
    "unknown template": (block(2, template="t9"), "block 2 has the unknown template t9"),
    "unused template": (block(0, template="t3"), "template t0 is used by no block"),
    "order of templates": (block(0, template="t3"), "templates in order of first use are t3"),
    "numbering": (block(3, id=7), "block 7 is in place 3"),
    "read before made": (swap_blocks, "block 1 reads linear_28 before it is made"),
    "made twice": (block(3, outputs=("linear_28",)), "block 3 makes linear_28 again"),
    "made in vain": (block(1, outputs=("nothing",)), "block 1 makes nothing, which no block reads"),
    "missing input": (block(2, inputs=("embedding_0",)), "block 2 has 1 inputs, template t2 2"),
    "missing output": (block(2, outputs=()), "block 2 has 0 outputs, template t2 1"),
    "missing weight": (block(2, weights=BLOCK[2].weights[1:]), "block 2 has 3 weights, template t2 4"),
    "token ids travel": (
        block(2, inputs=("input_ids", "linear_28")),
        "block 2 reads input_ids; only block 0 must",
    ),
    "no token ids": (block(0, inputs=("position_ids",)), "block 0 does not read input_ids"),
    "no logits": (block(5, outputs=("other",)), "block 5 does not make logits"),
    "logits in the middle": (block(3, outputs=("logits",)), "block 3 makes logits"),
    "unlisted tensor": (without_tensor, "output add_30 has no entry in tensors"),
    "listed for nothing": (
        lambda g: replace(g, tensors={**g.tensors, "q": first("q")}),
        "tensor q crosses no block boundary",
    ),
    "other name": (tensor("add_30", name="q"), "tensor add_30 calls itself q"),
    "shape": (
        tensor("add_30", shape=(1, "n", 17)),
        "block 3: input add_30 is float32 (1, 'n', 17), t1 expects",
    ),
    "dtype of tensor": (tensor("add_30", dtype="int64"), "block 2: output add_30 is int64"),
    "unknown dtype": (tensor("add_30", dtype="float64"), "tensor add_30 has the unknown dtype float64"),
    "unknown symbol": (tensor("add_30", shape=(1, "m", 16)), "tensor add_30 has the dimension 'm'"),
    "empty dimension": (tensor("add_30", shape=(1, 0, 16)), "tensor add_30 has the dimension 0"),
    "last row before a cache": (
        block(2, last_row_only=True),
        "block 2 is said to need the last row only, but a cache follows",
    ),
    "last row with a cache": (
        block(3, last_row_only=True),
        "block 3 is said to need the last row only, but it has a cache",
    ),
    "last row unmarked": (
        block(4, last_row_only=False),
        "block 4 needs the last row only, and is not marked so",
    ),
    "template's name": (template("t1", lambda t: replace(t, id="t7")), "template t1 calls itself t7"),
    "names clash": (
        template("t2", lambda t: replace(t, outputs=(first("x0"),))),
        "the name x0 stands for more than one tensor",
    ),
    "role": (
        template("t3", lambda t: replace(t, weights=(t.weights[0], WeightParam("w1", (50, 16), "sparse")))),
        "weight w1 has the role sparse",
    ),
    "rank": (
        template("t3", lambda t: replace(t, weights=(t.weights[0], WeightParam("w1", (50,), "linear")))),
        "linear weight w1 has 1 dimensions, not 2",
    ),
    "cache without positions": (
        template("t1", reversed_inputs),
        "template t1 has a cache, but position_ids is not its last",
    ),
    "no model": (template("t2", lambda t: replace(t, onnx=b"")), "template t2 has no ONNX model"),
    "negative figure": (template("t2", lambda t: replace(t, linear_flops=-1)), "linear_flops is -1"),
    "attention without cache": (
        template("t1", lambda t: replace(t, caches=())),
        "template t1 has 0 caches and 64 attention operations",
    ),
    "positions missing": (lambda g: replace(g, positions=None), "reads cos_4 before it is made"),
    "positions' inputs": (
        positions(inputs=(first("x0"),)),
        "the positions template reads x0, not position_ids",
    ),
    "positions' weights": (
        positions(weights=(WeightParam("w0", (3,), "plain"),)),
        "positions template has weights or caches",
    ),
    "positions' outputs": (
        positions(outputs=(first("cos_4"), first("sin_5"))),
        "positions tensor cos_4 is not in tensors as",
    ),
}


def test_a_sound_graph_has_no_violation() -> None:
    assert check_graph(GRAPH) == []


@pytest.mark.parametrize("case", CASES)
def test_broken(case: str) -> None:
    edit, expected = CASES[case]
    violations = check_graph(edit(GRAPH))
    assert any(expected in violation for violation in violations), violations


def test_every_violation_is_returned() -> None:
    edits = [CASES[case] for case in ("shape", "last row unmarked", "role", "negative figure")]
    graph = GRAPH
    for edit, _ in edits:
        graph = edit(graph)
    violations = check_graph(graph)
    for _, expected in edits:
        if expected.startswith("weight w1"):
            assert any("role sparse" in violation for violation in violations)
        else:
            assert any(expected in violation for violation in violations), expected


def test_an_empty_block_list_does_not_crash() -> None:
    empty = Graph((), {}, {}, None)
    assert check_graph(empty) == ["the graph has no blocks"]
    assert check_graph(replace(empty, blocks=(Block(0, "t0", (), (), ()),)))
