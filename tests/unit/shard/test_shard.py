"""Which blocks are cut, where, and which are refused and why."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from llcompile.ir.graph import Template, TensorSpec
from llcompile.ir.shard import ShardedBlock, WeightCut
from llcompile.shard import Split, shard, split, sum_template
from tests.unit.graph.oracle import check_template, session
from tests.unit.graph.synthetic import Writer
from tests.unit.shard.blocks import case_of, template_of
from tests.unit.shard.together import error, together

SIZES = {"hidden": 64, "heads": 8, "kv_heads": 2, "ffn": 96}


def attention(w: Writer, x: str) -> str:
    return w.op("Add", x, w.attention(w.norm(x, "norm"), 0, None))


def mlp(w: Writer, x: str) -> str:
    return w.op("Add", x, w.gated_mlp(w.norm(x, "norm"), 0))


def parallel(w: Writer, x: str) -> str:
    """Attention and MLP of one norm, both with biases, the residual between them."""
    h = w.norm(x, "norm")
    a = w.attention(h, 0, None, bias=True)
    return w.op("Add", w.op("Add", w.mlp(h, 0), x), a)


def pieces(template: Template, *shares: float, sums: int | None = None, multiple: int = 1) -> ShardedBlock:
    found = split(template)
    assert isinstance(found, Split), found
    made = shard(found, shares, len(shares) if sums is None else sums, multiple)
    assert isinstance(made, ShardedBlock), made
    return made


def refusal(template: Template, *shares: float, multiple: int = 1) -> str:
    found = split(template)
    made = shard(found, shares, len(shares), multiple) if isinstance(found, Split) else found
    assert isinstance(made, str)
    return made


@pytest.mark.parametrize("write", [attention, mlp, parallel])
@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_equal_and_unequal_groups(write: Callable[[Writer, str], str], count: int) -> None:
    case = case_of(template_of(write, **SIZES))
    unequal = np.random.default_rng(count).dirichlet(np.ones(count))
    for shares in ([1 / count] * count, unequal.tolist()):
        for sums in (1, count):
            made = together(case, pieces(case.template, *shares, sums=sums))
            assert error(made[0], case.outputs[0]) < 1e-5


def test_more_devices_than_key_heads() -> None:
    """Each has query heads of one key head, which is on several devices, or whole groups."""
    made = pieces(template_of(attention, **SIZES), 0.5, 0.2, 0.3)
    assert [s.template.id for s in made.shards] == ["t7_s4", "t7_s2", "t7_s2"]
    caches = [(c.heads, c.kv_heads) for s in made.shards for c in s.template.caches]
    assert caches == [(4, 1), (2, 1), (2, 1)]
    assert made.shards[2].cuts[1:] == (
        WeightCut(1, 0, ((48, 64),)),
        WeightCut(2, 0, ((8, 16),)),
        WeightCut(3, 0, ((8, 16),)),
        WeightCut(4, 1, ((48, 64),)),
    )


def test_equal_sizes_share_a_template() -> None:
    made = pieces(template_of(mlp, **SIZES), 0.25, 0.5, 0.25)
    first, middle, last = (piece.template for piece in made.shards)
    assert first == last
    assert first.id != middle.id
    assert 2 * first.linear_flops == middle.linear_flops + SIZES["hidden"]  # each has the norm
    # Of other shares, but of an equal size.
    assert pieces(template_of(mlp, **SIZES), 0.75, 0.25).shards[1].template == first


def test_slopes_go_with_their_heads() -> None:
    slopes = [2.0**-i for i in range(8)]
    template = template_of(lambda w, x: w.op("Add", x, w.attention(x, 0, None, alibi=slopes)), **SIZES)
    case = case_of(template)
    made = pieces(template, 0.5, 0.5)
    assert [s.template.id for s in made.shards] == ["t7_s4_at0", "t7_s4_at4"]
    assert error(together(case, made)[0], case.outputs[0]) < 1e-5


def test_cuts_stay_on_groups_of_quantised_weights() -> None:
    made = pieces(template_of(attention, **SIZES), 0.5, 0.5, multiple=32)
    assert [s.cuts[-1].ranges for s in made.shards] == [((0, 32),), ((32, 64),)]
    made = pieces(template_of(mlp, **{**SIZES, "ffn": 104}), 0.5, 0.3, 0.2, multiple=32)
    assert [s.cuts[-1].ranges for s in made.shards] == [((0, 64),), ((64, 96),), ((96, 104),)]


@pytest.mark.parametrize(
    ("write", "count"), [(attention, 4), (attention, 8), (mlp, 4), (mlp, 8), (parallel, 8)]
)
def test_shares_between_groups_of_quantised_weights(write: Callable[[Writer, str], str], count: int) -> None:
    """Matrices are cut at whole groups; what more than a share that is multiplies zeros."""
    case = case_of(template_of(write, **SIZES))
    made = pieces(case.template, *[1 / count] * count, multiple=32)
    ranges = [r for s in made.shards for cut in s.cuts if cut.axis == 1 for r in cut.ranges]
    assert len(ranges) >= count
    assert all(edge % 32 == 0 for r in ranges for edge in r)
    assert len({s.template.id for s in made.shards}) == len({s.template.onnx for s in made.shards}) > 1
    assert error(together(case, made)[0], case.outputs[0]) < 1e-5


def test_sums_keep_the_order_of_ranks() -> None:
    spec = TensorSpec("h", "float32", (1, "n", 1))
    template = sum_template(spec, 3)
    check_template(template)
    assert (template.id, [s.name for s in template.inputs]) == ("sum_3", ["x0", "x1", "x2"])
    parts = [np.full((1, 1, 1), value, np.float32) for value in (1e8, 3.0, -1e8)]
    feeds = {f"x{i}": part for i, part in enumerate(parts)}
    assert session(template.onnx).run(None, feeds)[0] == (parts[0] + parts[1]) + parts[2] != 3


def test_a_tail_adds_in_the_order_of_ranks_before_all_else() -> None:
    made = pieces(template_of(mlp, **SIZES), 0.4, 0.3, 0.3)
    names = [spec.name for spec in made.tail.template.inputs]
    parts = [np.full((1, 1, 64), value, np.float32) for value in (1e8, 3.0, -1e8, 5.0)]
    feeds = dict(zip(names, parts, strict=True))
    output = session(made.tail.template.onnx).run(None, feeds)[0]
    np.testing.assert_array_equal(output, (parts[0] + parts[1]) + parts[2] + parts[3])


def test_a_block_that_is_its_products_alone_has_a_tail_all_the_same() -> None:
    template = template_of(lambda w, x: w.mlp(x, 0), **SIZES)
    unbiased = template_of(lambda w, x: w.gated_mlp(x, 0), **SIZES)
    for case in map(case_of, (template, unbiased)):
        made = pieces(case.template, 0.5, 0.5, sums=1)
        assert error(together(case, made)[0], case.outputs[0]) < 1e-5


def through_an_inner_matrix(w: Writer, x: str) -> str:
    inner = w.op("Relu", w.linear(x, "a", w.ffn, w.hidden))
    return w.linear(w.op("Relu", w.linear(inner, "b", w.ffn, w.ffn)), "c", w.hidden, w.ffn)


def normed_inside(w: Writer, x: str) -> str:
    inner = w.linear(x, "a", w.ffn, w.hidden)
    normed = w.op("RMSNormalization", inner, w.weight("n", w.ffn), epsilon=1e-5, axis=-1)
    return w.linear(normed, "b", w.hidden, w.ffn)


def shifted_by_the_input(w: Writer, x: str) -> str:
    inner = w.op("Add", w.linear(x, "a", w.hidden, w.hidden), x)
    return w.linear(inner, "b", w.hidden, w.hidden)


def result_used_twice(w: Writer, x: str) -> str:
    h = w.norm(x, "norm")
    a = w.op("Relu", w.attention(h, 0, None))
    return w.op("Add", a, w.gated_mlp(h, 0))


def beside_a_matrix(w: Writer, x: str) -> str:
    return w.op("Add", w.gated_mlp(x, 0), w.linear(x, "side", w.hidden, w.hidden))


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda w, x: w.linear(x, "a", w.hidden, w.hidden), "no matrix multiplies what other matrices make"),
        (normed_inside, "RMSNormalization is over all that would be divided"),
        (shifted_by_the_input, "a part of the block's input goes to one device alone"),
        (result_used_twice, "not added up before they are used otherwise"),
        (beside_a_matrix, "what follows the sum needs llcompile.Linear"),
    ],
)
def test_refused_by_name(write: Callable[[Writer, str], str], reason: str) -> None:
    assert reason in refusal(template_of(write, **SIZES), 0.5, 0.5)


def test_a_matrix_before_those_that_are_cut_is_whole_everywhere() -> None:
    case = case_of(template_of(through_an_inner_matrix, **SIZES))
    made = pieces(case.template, 0.5, 0.5)
    assert [cut.axis for cut in made.shards[0].cuts] == [None, 0, 1]
    assert error(together(case, made)[0], case.outputs[0]) < 1e-5


@pytest.mark.parametrize(
    ("write", "count", "multiple", "reason"),
    [
        (attention, 9, 1, "8 heads of 8 features, 4 to a key head, cannot be cut for 9 devices"),
        (mlp, 97, 32, "of 96 columns 96 units are fewer than 97 devices (a unit: 1 columns)"),
    ],
)  # fmt: skip
def test_too_many_devices(
    write: Callable[[Writer, str], str], count: int, multiple: int, reason: str
) -> None:
    assert reason in refusal(template_of(write, **SIZES), *[1 / count] * count, multiple=multiple)
