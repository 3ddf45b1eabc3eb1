"""Scores become weights, tiles of keys one result (Milakov and Gimelshein, arXiv 1805.02867).

A tile is summed under its own largest score and then merged into the total, tile after tile in their order, so
it makes no difference who summed it. Scores are in units of ln 2: weights are powers of 2.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as B

from llcompile.lower.kernels.attention.cache import Head
from llcompile.lower.kernels.attention.products import fma
from llcompile.lower.kernels.attention.spec import FLOOR, LOG2_E, NONE, TILE, AttentionSpec
from llcompile.lower.kernels.vector import (
    TANH,
    Expr,
    horner,
    intrinsic,
    local,
    negative,
    rounded,
    run,
    same,
    splat,
    type_of,
)

LANES = 16  # scores taken at once
_ROUND = 1.5 * 2**23  # a float32 of this size has no fraction, and its last bits count
_LEAST = -126.0
# 2**r = P(r) for |r| <= 1/2: (2**r - 1) / r interpolated at Chebyshev nodes; within 6e-9 of it, exactly 1 at 0.
_POWER = (1.545316294e-4, 1.339086336e-3, 9.618082557e-3, 0.05550357114, 0.2402265076, 0.693147188, 1.0)


def power(x: Expr) -> Expr:
    """2**x within 1e-7, relative, for x in [-126, 0]; 0 of less than -126; exactly 1 of 0."""
    integer = "int32" + type_of(x).removeprefix("float32")
    v = B.Bind(x)
    # As an integer in between: (v + c) - c would be simplified to v.
    t = B.Bind(tirx.reinterpret(integer, v + splat(_ROUND, x)))
    r = B.Bind(v - (tirx.reinterpret(type_of(x), t) - splat(_ROUND, x)))
    value = tirx.reinterpret(integer, B.Bind(horner(r, _POWER)))
    scaled = tirx.reinterpret(type_of(x), value + (t << tirx.const(23, integer)))
    return tirx.Select(v < splat(_LEAST, x), splat(0.0, x), scaled)


@dataclass(frozen=True)
class SoftmaxState:
    """For each row: the largest score so far, what sums are scaled by when a tile is merged (`old`) and what the
    tile's are (`new`), the sum of weights (16 lanes), and the weighted sum of values."""

    peak: tirx.Buffer
    old: tirx.Buffer
    new: tirx.Buffer
    sums: tirx.Buffer
    mixed: tirx.Buffer


def new_state(rows: int, spec: AttentionSpec) -> SoftmaxState:
    shapes = ((rows,), (rows,), (rows,), (rows, LANES), (rows, spec.value_dim))
    return SoftmaxState(*(local(shape) for shape in shapes))


def clear(state: SoftmaxState, row: Expr) -> None:
    zero = tirx.const(0.0, "float32")
    B.buffer_store(state.peak, tirx.const(FLOOR, "float32"), [row])
    B.buffer_store(state.sums, same(zero, LANES), [row, tirx.Ramp(0, 1, LANES)])
    with B.serial(int(state.mixed.shape[1])) as j:
        B.buffer_store(state.mixed, zero, [row, j])


@dataclass(frozen=True)
class ScoreRow:
    """A row of scores of one tile. `ahead`: position of the tile's first key less the query's. `slope`: of ALiBi."""

    scores: tirx.Buffer
    number: Expr
    ahead: Expr
    slope: Expr | None

    def index(self, vector: Expr | int) -> list[Expr]:
        return [self.number, tirx.Ramp(vector * LANES, 1, LANES)]


def weigh(row: ScoreRow, head: Head, base: Expr, spec: AttentionSpec) -> tuple[Expr, Expr]:
    """Make a row's scores weights 2**(score - largest). Returns the largest and the sum of weights, 16 lanes.

    Weights of keys that the query does not see are 0: their scores are far below any floor. (Scales of tokens that
    are not there may make them NaN: values are added up to the last token only.)
    """
    _adjust(row, head, base, spec)
    with B.If(tirx.Or(row.ahead > 1 - TILE, row.ahead <= -spec.reach)), B.Then():
        _mask(row, spec)
    vectors = range(TILE // LANES)
    scores = [B.Bind(row.scores[tuple(row.index(v))]) for v in vectors]
    top = B.Bind(tirx.max(_largest(_tree(scores, tirx.max)), tirx.const(FLOOR, "float32")))
    weights = [B.Bind(power(score - same(top, LANES))) for score in scores]
    for v, weight in enumerate(weights):
        if head.cache.value_scales is not None:
            weight = weight * head.scales(head.cache.value_scales, base + v * LANES, LANES)
        B.buffer_store(row.scores, weight, row.index(v))
    return top, B.Bind(_tree(weights, operator.add))


def _mask(row: ScoreRow, spec: AttentionSpec) -> None:
    with B.serial(TILE // LANES) as v:
        index = row.index(v)
        ahead = same(row.ahead + v * LANES, LANES) + tirx.Ramp(0, 1, LANES)
        seen = tirx.And(ahead <= splat(0, ahead), ahead > splat(-spec.reach, ahead))
        score = row.scores[tuple(index)]
        B.buffer_store(row.scores, tirx.Select(seen, score, splat(NONE, score)), index)


def _adjust(row: ScoreRow, head: Head, base: Expr, spec: AttentionSpec) -> None:
    """Scales of the keys, soft cap (cap * tanh(score / cap), the division done on the query), ALiBi. Products are
    rounded, though they go to memory: the compiler may take what is read from there for what was written."""
    if head.cache.key_scales is None and not spec.softcap and row.slope is None:
        return
    slope = None if row.slope is None else B.Bind(row.slope)
    with B.serial(TILE // LANES) as v:
        index = row.index(v)
        score = row.scores[tuple(index)]
        if head.cache.key_scales is not None:
            score = B.Bind(rounded(score * head.scales(head.cache.key_scales, base + v * LANES, LANES)))
        if spec.softcap:
            score = B.Bind(rounded(_tanh(score) * splat(spec.softcap * LOG2_E, score)))
        if slope is not None:
            ahead = same(row.ahead + v * LANES, LANES) + tirx.Ramp(0, 1, LANES)
            score = score + same(slope, LANES) * tirx.Cast(f"float32x{LANES}", ahead)
        B.buffer_store(row.scores, score, index)


def _tanh(x: Expr) -> Expr:
    """As vector.tanh, but of bound variables alone: the compiler can't copy an expression that binds its own."""
    one = splat(1.0, x)
    size = B.Bind(tirx.abs(x))
    square = B.Bind(x * x)
    near = B.Bind(x + x * square * horner(square, TANH))
    shrunk = B.Bind(power(rounded(size * splat(-2 * LOG2_E, x))))
    far = B.Bind((one - shrunk) / (one + shrunk))
    signed = tirx.Select(x < splat(0.0, x), negative(far), far)
    return tirx.Select(size < splat(0.625, x), near, signed)


def query_scale(spec: AttentionSpec) -> float:
    """What queries are multiplied by."""
    return spec.scale / spec.softcap if spec.softcap else spec.scale * LOG2_E


def _tree(values: list[Expr], join: Callable[[Expr, Expr], Expr]) -> Expr:
    while len(values) > 1:
        values = [B.Bind(join(a, b)) for a, b in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def _largest(vector: Expr) -> Expr:
    """The largest lane: halves are compared."""
    lanes = LANES
    while lanes > 1:
        lanes //= 2
        low, high = ([tirx.const(i, "int32") for i in range(first, first + lanes)] for first in (0, lanes))
        if lanes > 1:
            vector = B.Bind(tirx.max(tirx.Shuffle([vector], low), tirx.Shuffle([vector], high)))
        else:
            vector = tirx.max(tirx.Shuffle([vector], low), tirx.Shuffle([vector], high))
    return vector


def merge_peak(state: SoftmaxState, row: Expr, top: Expr, sums: Expr) -> None:
    """Take a tile's largest score and sum of weights into `row`; `old` and `new` are then what `merge` needs."""
    lanes = tirx.Ramp(0, 1, LANES)
    peak = B.Bind(tirx.max(state.peak[row], top))
    old, new = B.Bind(power(state.peak[row] - peak)), B.Bind(power(top - peak))
    B.buffer_store(state.peak, peak, [row])
    B.buffer_store(state.old, old, [row])
    B.buffer_store(state.new, new, [row])
    scaled = sums * same(new, LANES)
    B.buffer_store(state.sums, fma(state.sums[row, lanes], same(old, LANES), scaled, LANES), [row, lanes])


def merge(state: SoftmaxState, row: Expr, column: Expr, value: Expr, lanes: int) -> None:
    """Take a tile's weighted sum of values, `lanes` columns of it from `column` on, into `row`."""
    columns = run(column, lanes)
    scaled = value * same(state.new[row], lanes)
    total = fma(state.mixed[row, columns], same(state.old[row], lanes), scaled, lanes)
    B.buffer_store(state.mixed, total, [row, columns])


def inverse_sum(state: SoftmaxState, row: Expr) -> Expr:
    """1 / the sum of a row's weights."""
    sums = state.sums[row, tirx.Ramp(0, 1, LANES)]
    total = intrinsic("float32", "llvm.vector.reduce.fadd", tirx.const(-0.0, "float32"), sums)
    return tirx.const(1.0, "float32") / total
