"""One tile of keys for a block of query rows: scores, weights, weighted values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as B

from llcompile.ir.packing import KEY_BLOCK
from llcompile.lower.kernels.attention.products import hold, products
from llcompile.lower.kernels.attention.spec import Blocking
from llcompile.lower.kernels.vector import Expr, run

KeySource = Callable[[Expr, Expr], Expr]  # float32xL of (first key in the tile, component)
ValueSource = Callable[[Expr, Expr], Expr]  # float32xL of (key in the tile, first column)
MixSink = Callable[[int, Expr, Expr, int], None]  # (row, first column, float32xL, L)


@dataclass(frozen=True)
class Rows:
    """Query rows first .. first + count - 1 of `query` (rows, d); their scores are in `scores` (rows, TILE)."""

    query: tirx.Buffer
    scores: tirx.Buffer
    first: Expr | int
    count: int


def over_keys(blocking: Blocking, rows: int, count: Expr, body: Callable[[Expr, int], None]) -> None:
    """`body` of (first key, number of keys), for the first `count` keys of a tile rounded up to whole blocks."""
    wide = max(blocking.vectors(rows) * blocking.lanes, blocking.lanes)
    narrow = min(wide, KEY_BLOCK)
    if wide == narrow:
        with B.serial((count + (narrow - 1)) // narrow) as g:
            body(g * narrow, narrow)
        return
    full = hold(count // wide)
    with B.serial(full) as g:
        body(g * wide, wide)
    with B.serial((count - full * wide + (narrow - 1)) // narrow) as g:
        body(full * wide + g * narrow, narrow)


def score(rows: Rows, keys: KeySource, first: Expr, count: int, lanes: int) -> None:
    """Scores of the rows with keys first .. first + count - 1 of the tile."""

    def left(r: int, s: Expr) -> Expr:
        return rows.query[rows.first + r, s]

    def right(v: int, s: Expr) -> Expr:
        return keys(first + v * lanes, s)

    def sink(r: int, v: int, value: Expr) -> None:
        B.buffer_store(rows.scores, value, [rows.first + r, run(first + v * lanes, lanes)])

    products(rows.count, count // lanes, lanes, int(rows.query.shape[1]), left, right, sink)


def mix(
    blocking: Blocking,
    rows: Rows,
    values: ValueSource,
    count: Expr,
    width: int,
    sink: MixSink,
) -> None:
    """sink(row, first column, float32xL, L) of the rows' weighted sums of the tile's first `count` values."""
    wide, together, left_over = blocking.strips(width, rows.count)

    def strip(first: Expr | int, vectors: int) -> None:
        def left(r: int, s: Expr) -> Expr:
            return rows.scores[rows.first + r, s]

        def right(v: int, s: Expr) -> Expr:
            return values(s, first + v * wide)

        def write(r: int, v: int, value: Expr) -> None:
            sink(r, first + v * wide, value, wide)

        products(rows.count, vectors, wide, count, left, right, write)

    full = width // wide // together
    if full:
        with B.serial(full) as c:
            strip(c * (together * wide), together)
    if left_over:
        strip(full * together * wide, left_over)
