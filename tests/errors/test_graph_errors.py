"""Graphs that break the canonical form are refused by name, with the code of what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import onnx
import pytest
from onnx import TensorProto, helper

from llcompile.dataflow.nodes import read_dataflow
from llcompile.graph import build_graph
from llcompile.graph.simplify import VERIFIER, DropDeadNodes, MergePositionArithmetic
from llcompile.ir.errors import CompileError
from llcompile.ir.model import Model
from llcompile.passes import run_passes
from tests.unit.graph.synthetic import Writer, decoder, sequential

Edit = Callable[[Writer, str], str]


def model_with(edit: Edit) -> Model:
    """A layer, what `edit` adds to the hidden state, and the head."""
    w = Writer()
    x = sequential(w, w.embedding("input_ids", "embed", w.vocab), 0, w.rotary_table())
    w.head(w.norm(edit(w, x), "norm"))
    return w.model()


def linear(w: Writer, x: str, matrix: str) -> str:
    return w.op("Linear", x, matrix, domain="llcompile", name="odd")


def derived_matrix(w: Writer, x: str) -> str:
    return linear(w, x, w.op("Transpose", w.weight("m", 16, 16), perm=[1, 0]))


def linear_and_plain(w: Writer, x: str) -> str:
    return w.op("Mul", x, w.op("ReduceSum", "layers.0.attn.o.weight", w.constant([0], "int64"), keepdims=0))


def wrong_features(w: Writer, x: str) -> str:
    return linear(w, x, w.weight("m", 16, 17))


def wrong_bias(w: Writer, x: str) -> str:
    return w.op("Linear", x, w.weight("m", 16, 16), w.weight("b", 15), domain="llcompile", name="odd")


def wrong_heads(w: Writer, x: str) -> str:
    q, k = (w.op("Reshape", x, w.constant([1, -1, heads, 16 // heads], "int64")) for heads in (4, 8))
    q, k = (w.op("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, k))
    return w.op("Attention", q, k, k, domain="llcompile", layer=1, scale=1.0, name="odd")


def unknown_operator(w: Writer, x: str) -> str:
    return w.op("Frobnicate", x, domain="elsewhere", name="odd")


def misfit(w: Writer, x: str) -> str:
    return w.op("Add", x, w.constant([1.0, 2.0, 3.0]), name="odd")


def doubled_length(w: Writer, x: str) -> str:
    return w.op("Concat", x, x, axis=1, name="odd")


def unknown_shape(w: Writer, x: str) -> str:
    return w.op("Reshape", x, w.op("Shape", w.op("NonZero", x)), name="odd")


def branch(w: Writer, x: str) -> str:
    output = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    body = helper.make_graph([helper.make_node("Identity", [x], ["inner"])], "body", [], [output])
    return w.op("If", w.constant(True, "bool"), then_branch=body, else_branch=body, name="odd")


def float64(w: Writer, x: str) -> str:
    return w.op("Cast", w.op("Cast", x, to=TensorProto.DOUBLE, name="odd"), to=TensorProto.FLOAT)


CASES: dict[Edit, tuple[str, tuple[str, ...]]] = {
    derived_matrix: ("G103", ("odd", "transpose_", "no weight input")),
    linear_and_plain: ("G103", ("layers.0.attn.o.weight", "linear", "plain")),
    wrong_features: ("G104", ("odd", "16 features", "(16, 17)")),
    wrong_bias: ("G104", ("odd", "(15,)", "(16, 16)")),
    wrong_heads: ("G104", ("odd", "(1, 4, 5, 4)", "(1, 8, 5, 2)")),
    unknown_operator: ("G104", ("elsewhere.Frobnicate", "odd")),
    misfit: ("G104", ("Add", "odd")),
    doubled_length: ("G104", ("odd", "10", "14")),
    unknown_shape: ("G104", ("NonZero", "a dimension depends on values")),
    branch: ("G102", ("If", "odd", "control flow")),
    float64: ("G104", ("odd", "float64")),
}


@pytest.mark.parametrize("edit", CASES, ids=lambda edit: edit.__name__)
def test_refused(edit: Edit) -> None:
    code, words = CASES[edit]
    with pytest.raises(CompileError) as caught:
        build_graph(model_with(edit))
    assert caught.value.code == code
    for word in words:
        assert word in caught.value.message


def test_the_unedited_model_is_accepted() -> None:
    assert len(build_graph(model_with(lambda w, x: x)).blocks) == 4


def edited(change: Callable[[onnx.ModelProto], None]) -> Model:
    model = decoder(1)
    proto = onnx.ModelProto.FromString(model.onnx)
    change(proto)
    return replace(model, onnx=proto.SerializeToString())


def drop_node(proto: onnx.ModelProto) -> None:
    del proto.graph.node[5]


def repeat_node(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(proto.graph.node[5])


def rename_logits(proto: onnx.ModelProto) -> None:
    proto.graph.node[-1].output[0] = "something"


def reverse(proto: onnx.ModelProto) -> None:
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop_node, "which nothing made before"),
        (repeat_node, "again"),
        (rename_logits, "nothing makes logits"),
        (reverse, "which nothing made before"),
    ],
)
def test_broken_dataflow(change: Callable[[onnx.ModelProto], None], words: str) -> None:
    with pytest.raises(CompileError, match=words) as caught:
        build_graph(edited(change))
    assert caught.value.code == "G101"


def test_unknown_weight() -> None:
    model = decoder(1)
    weights = {name: source for name, source in model.weights.items() if name != "lm_head"}
    with pytest.raises(CompileError, match="graph input lm_head is no weight"):
        build_graph(replace(model, weights=weights))


def test_weight_of_another_shape() -> None:
    model = decoder(1)
    weights = {**model.weights, "lm_head": replace(model.weights["lm_head"], shape=(50, 17))}
    with pytest.raises(CompileError, match=r"graph has shape \(50, 16\), checkpoint \(50, 17\)"):
        build_graph(replace(model, weights=weights))


def test_table_read_as_a_vector_by_its_own_block() -> None:
    w = Writer()
    x = w.embedding("input_ids", "embed", w.vocab)
    x = w.op("Mul", x, w.op("ReduceSum", "embed", w.constant([0], "int64"), keepdims=0))
    w.head(sequential(w, x, 0, w.rotary_table()))
    with pytest.raises(CompileError, match="weight embed is used both as embedding and as plain") as caught:
        build_graph(w.model())
    assert caught.value.code == "G103"


def test_no_attention() -> None:
    w = Writer()
    w.head(w.gated_mlp(w.embedding("input_ids", "embed", w.vocab), 0))
    with pytest.raises(CompileError, match=r"no llcompile\.Attention") as caught:
        build_graph(w.model())
    assert caught.value.code == "G105"


def test_embedding_behind_attention() -> None:
    def edit(w: Writer, x: str) -> str:
        ids = w.op("Cast", w.op("ReduceMax", x, w.constant([2], "int64"), keepdims=0), to=TensorProto.INT64)
        return w.embedding(ids, "second", 16)

    with pytest.raises(CompileError, match="follows attention") as caught:
        build_graph(model_with(edit))
    assert caught.value.code == "G105"


def test_nothing_behind_attention() -> None:
    w = Writer()
    x = w.attention(w.embedding("input_ids", "embed", w.vocab), 0, w.rotary_table())
    w.op("Identity", x, name="logits")
    assert len(build_graph(w.model()).blocks) == 3  # the output projection makes the logits
    w = Writer()
    x = w.split_heads(w.linear(w.embedding("input_ids", "embed", w.vocab), "q", 16, 16), 4)
    w.op("Attention", x, x, x, domain="llcompile", layer=0, scale=1.0, name="logits")
    with pytest.raises(CompileError, match="nothing follows an attention node") as caught:
        build_graph(w.model())
    assert caught.value.code == "G105"


def test_merging_needs_a_live_dataflow() -> None:
    flow = read_dataflow(decoder(1))
    with pytest.raises(CompileError, match=r"E111.*merge-position-arithmetic requires live"):
        run_passes(flow, [MergePositionArithmetic(), DropDeadNodes()], VERIFIER)


def test_dropping_rejects_a_dataflow_without_logits() -> None:
    flow = read_dataflow(edited(rename_logits))
    with pytest.raises(
        CompileError, match=r"E112.*after input: the program is not sound: nothing makes logits"
    ):
        run_passes(flow, [DropDeadNodes()], VERIFIER)
