"""Attention for one new token of each of one or more sequences.

Short caches: a task is a key-value head of a sequence, from append to output. Long ones: tasks are runs of tiles,
so that all threads have work whatever the number of heads, and the tiles' results are merged afterwards in their
order, which gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import relax, tirx
from tvm.script.ir_builder import tirx as B

from llcompile.ir.packing import pad
from llcompile.lower.kernels.attention.cache import Head
from llcompile.lower.kernels.attention.kernel import Arguments, Inputs, build
from llcompile.lower.kernels.attention.products import hold
from llcompile.lower.kernels.attention.softmax import (
    LANES,
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
from llcompile.lower.kernels.attention.tile import MixSink, Rows, mix, over_keys, score
from llcompile.lower.kernels.vector import Expr, Extent, local, run

# Bytes from what is read to what is asked for meanwhile. Measured on one thread, 8192 tokens of 8 heads of 128, f16:
# 12.8 GB/s without, 17.2 at 4 KiB, 26.5 at 16 KiB.
AHEAD = 16384
ROWS = 8  # most query rows in a block
TOGETHER = 4  # tiles of a task
SHORT = 8  # tiles up to which a head is one task


def step_attention(
    lanes: int, n: Extent, spec: AttentionSpec, inputs: Inputs
) -> tuple[tirx.PrimFunc, list[relax.Expr]]:
    """Token i at position_ids[0, i] of the sequence in slots[i], which must differ; the query at position p sees
    positions max(0, p - window + 1)..p. See `build` for the arguments."""

    def body(a: Arguments) -> None:
        kernel = _Kernel(a, Blocking(lanes), n)
        kernel.attend(B.Bind(kernel.most_tiles()))

    return build(n, n, spec, inputs, workspace(n, spec), body)


def most_tiles(spec: AttentionSpec) -> int:
    """Tiles that a query can see."""
    return min(pad(spec.context, TILE) // TILE, (spec.reach - 1) // TILE + 2)


def workspace(n: Extent, spec: AttentionSpec) -> tuple[Expr | int, int, int, int]:
    """Shape of the kernel's scratch memory, float32: for each block of query rows of a head, each tile and each row
    the sum of weights (16 lanes), the largest score (a lane's worth), and the weighted values."""
    blocks = -(-spec.group // ROWS)
    return n * spec.kv_heads * blocks, most_tiles(spec), -(-spec.group // blocks), 2 * LANES + spec.value_dim


@dataclass(frozen=True)
class _Task:
    """A key-value head of sequence i. Tiles first .. stop - 1 hold what the token at `position` sees."""

    sequence: Expr
    head: Head
    position: Expr
    first: Expr
    stop: Expr


@dataclass(frozen=True)
class _Kernel:
    a: Arguments
    blocking: Blocking
    n: Extent

    @property
    def space(self) -> tirx.Buffer:
        assert self.a.workspace is not None
        return self.a.workspace

    @property
    def rows(self) -> int:
        """Query rows of a block: the group in equal parts of at most ROWS."""
        group = self.a.spec.group
        return -(-group // self.blocks)

    @property
    def blocks(self) -> int:
        return -(-self.a.spec.group // ROWS)

    def first_tile(self, position: Expr) -> Expr:
        return tirx.max(position + 1 - self.a.spec.reach, tirx.const(0, "int64")) // TILE

    def most_tiles(self) -> Expr:
        """The largest number of tiles of any sequence."""
        most = local((1,), "int64")
        B.buffer_store(most, tirx.const(0, "int64"), [0])
        with B.serial(self.n) as i:
            position = hold(self.a.position[0, i])
            tiles = position // TILE + 1 - self.first_tile(position)
            B.buffer_store(most, tirx.max(most[0], tiles), [0])
        return most[0]

    def task(self, item: Expr) -> _Task:
        kv_heads = self.a.spec.kv_heads
        i = hold(item // kv_heads)
        position = hold(self.a.position[0, i])
        head = Head(self.a.cache, hold(self.a.slots[i]), hold(item % kv_heads))
        return _Task(i, head, position, hold(self.first_tile(position)), hold(position // TILE + 1))

    def buffers(self) -> tuple[tirx.Buffer, tirx.Buffer]:
        shapes = ((self.rows, self.a.spec.key_dim), (self.rows, TILE))
        query, scores = (local(shape) for shape in shapes)
        return query, scores

    def query_head(self, task: _Task, b: Expr, r: Expr) -> Expr:
        """Of row r of block b; the last block's rows past the end repeat the group's last head."""
        group = self.a.spec.group
        return task.head.head * group + tirx.min(b * self.rows + r, group - 1)

    def load(self, task: _Task, b: Expr, query: tirx.Buffer) -> None:
        with B.serial(self.rows) as r:
            self.a.load_query(query, r, self.query_head(task, b, r), task.sequence)

    def scores(self, task: _Task, rows: Rows, base: Expr) -> Expr:
        """Score the tile. Returns the number of keys in it."""
        lanes = self.blocking.lanes
        count = hold(tirx.min(task.position + 1 - base, TILE))

        def body(first: Expr, keys: int) -> None:
            def source(t: Expr, s: Expr) -> Expr:
                task.head.fetch_keys(base + t, s, AHEAD)
                return task.head.keys(base + t, s, lanes)

            score(rows, source, first, keys, lanes)

        over_keys(self.blocking, rows.count, count, body)
        return count

    def weights(self, task: _Task, b: Expr, rows: Rows, r: Expr, base: Expr) -> tuple[Expr, Expr]:
        ahead = hold(tirx.Cast("int32", base - task.position))
        row = ScoreRow(rows.scores, r, ahead, self.a.slope(self.query_head(task, b, r)))
        return weigh(row, task.head, base, self.a.spec)

    def values(self, task: _Task, rows: Rows, base: Expr, count: Expr, sink: MixSink) -> None:
        dv = self.a.spec.value_dim
        wide, _, _ = self.blocking.strips(dv, rows.count)

        def source(s: Expr, column: Expr) -> Expr:
            task.head.fetch_values(base + s, column, AHEAD)
            return task.head.values(base + s, column, wide)

        mix(self.blocking, rows, source, count, dv, sink)

    def write(self, task: _Task, b: Expr, state: SoftmaxState) -> None:
        with B.serial(self.rows) as r:
            inverse = B.Bind(inverse_sum(state, r))
            head = hold(self.query_head(task, b, r))
            with B.serial(self.a.spec.value_dim) as j:
                B.buffer_store(self.a.out, state.mixed[r, j] * inverse, [0, task.sequence, head, j])

    def attend(self, most: Expr) -> None:
        """Every tile's result into the workspace, then merge. A head whose caches are short is one task."""
        tasks = self.n * self.a.spec.kv_heads
        whole = most <= (SHORT if self.blocks == 1 else 0)
        parts = B.Bind((most + (TOGETHER - 1)) // TOGETHER)
        together = B.Bind(tirx.Select(whole, parts, tirx.const(1, "int64")))
        with B.If(tirx.Not(whole)), B.Then(), B.parallel(tasks) as item:
            self.append(self.task(item))
        runs = B.Bind(tirx.Select(whole, tirx.const(1, "int64"), parts))
        with B.parallel(tasks * self.blocks * runs) as item:
            pair = hold(item // runs)
            task, b = self.task(pair // self.blocks), hold(pair % self.blocks)
            with B.If(whole), B.Then():
                self.append(task)
            with B.serial(together) as part:
                self.run_of_tiles(task, b, pair, (item % runs + part) * TOGETHER)
            with B.If(whole), B.Then():
                self.combine(task, b, pair)
        with B.If(tirx.Not(whole)), B.Then(), B.parallel(tasks * self.blocks) as pair:
            self.combine(self.task(pair // self.blocks), hold(pair % self.blocks), pair)

    def append(self, task: _Task) -> None:
        self.a.append(task.head, task.sequence, task.position)

    def run_of_tiles(self, task: _Task, b: Expr, pair: Expr, first: Expr) -> None:
        space = self.space
        query, scores = self.buffers()
        stop = hold(tirx.min(first + TOGETHER, task.stop - task.first))
        with B.If(first < stop), B.Then():
            self.load(task, b, query)
            with B.serial(stop - first) as each:
                t = hold(first + each)
                base = hold((task.first + t) * TILE)
                rows = Rows(query, scores, 0, self.rows)
                count = self.scores(task, rows, base)
                with B.serial(self.rows) as r:
                    top, total = self.weights(task, b, rows, r, base)
                    B.buffer_store(space, total, [pair, t, r, run(0, LANES)])
                    B.buffer_store(space, top, [pair, t, r, LANES])

                def sink(r: int, column: Expr, value: Expr, wide: int) -> None:
                    B.buffer_store(space, value, [pair, t, r, run(2 * LANES + column, wide)])

                self.values(task, rows, base, count, sink)

    def combine(self, task: _Task, b: Expr, pair: Expr) -> None:
        space = self.space
        state = new_state(self.rows, self.a.spec)
        wide, _, _ = self.blocking.strips(self.a.spec.value_dim, self.rows)
        with B.serial(self.rows) as r:
            clear(state, r)
            with B.serial(task.stop - task.first) as t:
                merge_peak(state, r, space[pair, t, r, LANES], space[pair, t, r, run(0, LANES)])
                with B.serial(self.a.spec.value_dim // wide) as j:
                    value = space[pair, t, r, run(2 * LANES + j * wide, wide)]
                    merge(state, r, j * wide, value, wide)
        self.write(task, b, state)
