"""Attention for the new tokens of one prompt: blocks of many query rows share the keys and values they read.

A row is one query head of one token. Work is cut into (key-value head, block of rows); a tile's keys and values
are converted to float32 once for all the rows of a block, which are then multiplied a register block at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import relax, tirx
from tvm.script.ir_builder import tirx as B

from llcompile.lower.kernels.attention.cache import Head
from llcompile.lower.kernels.attention.kernel import Arguments, Inputs, build
from llcompile.lower.kernels.attention.products import hold
from llcompile.lower.kernels.attention.softmax import (
    ScoreRow,
    SoftmaxState,
    clear,
    inverse_sum,
    merge,
    merge_peak,
    new_state,
    weigh,
)
from llcompile.lower.kernels.attention.spec import TILE, AttentionSpec, Blocking
from llcompile.lower.kernels.attention.tile import Rows, mix, over_keys, score
from llcompile.lower.kernels.vector import Expr, local, run

ROWS = 48  # query rows of a block: a multiple of every instruction set's register block


def prompt_attention(
    lanes: int, n: tirx.Var, spec: AttentionSpec, inputs: Inputs
) -> tuple[tirx.PrimFunc, list[relax.Expr]]:
    """n tokens of the sequence in slots[0], appended at position_ids[0, 0]; the query at position p sees positions
    max(0, p - window + 1)..p. See `build` for the arguments."""
    blocking = Blocking(lanes)
    rows = n * spec.group
    blocks = (rows + (ROWS - 1)) // ROWS

    def body(a: Arguments) -> None:
        start = B.Bind(a.position[0, 0])
        slot = B.Bind(a.slots[0])
        with B.parallel(n * spec.kv_heads) as item:
            h, token = hold(item // n), hold(item % n)
            a.append(Head(a.cache, slot, h), token, start + token)
        with B.parallel(spec.kv_heads * blocks) as item:
            order = hold(item % blocks)
            # Late blocks see more keys than early ones: taken in turn, they spread evenly over threads.
            number = hold(tirx.Select(order % 2 < 1, order // 2, blocks - 1 - order // 2))
            first = hold(number * ROWS)
            last = hold(tirx.min(first + ROWS, rows) - 1)
            _attend(
                a,
                blocking,
                QueryBlock(Head(a.cache, slot, hold(item // blocks)), start, first, last, spec.group),
            )

    return build(n, 1, spec, inputs, None, body)


@dataclass(frozen=True)
class QueryBlock:
    """Query rows first .. last of a key-value head, counted from the first new token's first head."""

    head: Head
    start: Expr
    first: Expr
    last: Expr
    group: int

    def row(self, r: Expr) -> Expr:
        return tirx.min(self.first + r, self.last)

    def token(self, r: Expr) -> Expr:
        return self.row(r) // self.group

    def query_head(self, r: Expr) -> Expr:
        return self.head.head * self.group + self.row(r) % self.group

    def position(self, r: Expr) -> Expr:
        return self.start + self.token(r)


@dataclass(frozen=True)
class Scratch:
    """keys (d, what is scored at once) and values (TILE, dv) in float32."""

    query: tirx.Buffer
    scores: tirx.Buffer
    keys: tirx.Buffer
    values: tirx.Buffer


def _attend(a: Arguments, blocking: Blocking, block: QueryBlock) -> None:
    """The block's rows over all tiles that one of them sees."""
    spec = a.spec
    wide = max(blocking.vectors(blocking.rows) * blocking.lanes, blocking.lanes)
    shapes = ((ROWS, spec.key_dim), (ROWS, TILE), (spec.key_dim, wide), (TILE, spec.value_dim))
    scratch = Scratch(*(local(shape) for shape in shapes))
    state = new_state(ROWS, spec)
    active = hold(block.last - block.first + 1)
    bands = hold((active + (blocking.rows - 1)) // blocking.rows)
    with B.serial(bands * blocking.rows) as r:
        a.load_query(scratch.query, r, block.query_head(r), block.token(r))
        clear(state, r)
    stop = hold(block.position(active - 1) + 1)
    begin = hold(
        tirx.max(block.position(tirx.const(0, "int64")) + 1 - spec.reach, tirx.const(0, "int64")) // TILE
    )
    with B.serial((stop + (TILE - 1)) // TILE - begin) as tile:
        base = hold((begin + tile) * TILE)
        _tile(a, blocking, block, scratch, state, base, hold(tirx.min(stop - base, TILE)), bands)
    with B.serial(active) as r:
        inverse = B.Bind(inverse_sum(state, r))
        head, token = hold(block.query_head(r)), hold(block.token(r))
        with B.serial(spec.value_dim) as j:
            B.buffer_store(a.out, state.mixed[r, j] * inverse, [0, token, head, j])


def _tile(
    a: Arguments,
    blocking: Blocking,
    block: QueryBlock,
    scratch: Scratch,
    state: SoftmaxState,
    base: Expr,
    count: Expr,
    bands: Expr,
) -> None:
    """Keys base .. base + count - 1."""
    size, lanes = blocking.rows, blocking.lanes

    def band(number: Expr) -> Rows:
        return Rows(scratch.query, scratch.scores, number * size, size)

    def seen(number: Expr) -> Expr:
        """Keys of the tile that a band's last row sees."""
        return tirx.min(block.position(number * size + (size - 1)) + 1 - base, TILE)

    def group(first: Expr, keys: int) -> None:
        _convert_keys(block.head, scratch.keys, base + first, keys, lanes)
        with B.serial(bands) as number, B.If(first < hold(seen(number))), B.Then():
            score(band(number), lambda t, s: scratch.keys[s, run(t - first, lanes)], first, keys, lanes)

    over_keys(blocking, size, count, group)
    with B.serial(bands * size) as r:
        ahead = hold(tirx.Cast("int32", base - block.position(r)))
        row = ScoreRow(scratch.scores, r, ahead, a.slope(block.query_head(r)))
        merge_peak(state, r, *weigh(row, block.head, base, a.spec))
    _convert_values(block.head, scratch.values, base, count, blocking, a.spec.value_dim)
    wide, _, _ = blocking.strips(a.spec.value_dim, size)
    with B.serial(bands) as number:
        mix(
            blocking, band(number), lambda s, c: scratch.values[s, run(c, wide)],
            hold(tirx.max(seen(number), 0)), a.spec.value_dim,
            lambda r, column, value, wide: merge(state, number * size + r, column, value, wide),
        )  # fmt: skip


def _convert_keys(head: Head, to: tirx.Buffer, token: Expr, count: int, lanes: int) -> None:
    for v in range(0, count, lanes):
        with B.serial(int(to.shape[0])) as s:
            B.buffer_store(to, head.keys(token + v, s, lanes), [s, run(v, lanes)])


def _convert_values(
    head: Head, to: tirx.Buffer, token: Expr, count: Expr, blocking: Blocking, width: int
) -> None:
    wide, _, _ = blocking.strips(width, blocking.rows)
    with B.serial(count) as t, B.serial(width // wide) as j:
        B.buffer_store(to, head.values(token + t, j * wide, wide), [t, run(j * wide, wide)])
