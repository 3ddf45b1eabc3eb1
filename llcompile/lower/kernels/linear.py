"""Kernels of matrix products y = x Wᵀ with packed weights (ir.packing, kind `tiled`), for one token and for many.

One kernel multiplies its input by several matrices in one parallel region and finishes the sums (bias, activation,
residual, quantisation) before it writes them. A task is a tile of rows of one output; it multiplies all tokens, in
blocks whose accumulators stay in registers, while the tile stays in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import gcd

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as B

from llcompile.ir.packing import BITS, GROUP, pad
from llcompile.lower.kernels.blocks import (
    Activations,
    BlockProduct,
    Matrix,
    Sums,
    float_block,
    over_tokens,
    pair_tokens,
    quantised_block,
)
from llcompile.lower.kernels.isa import STEPS, Isa
from llcompile.lower.kernels.quantise import quantise_group
from llcompile.lower.kernels.vector import Expr, Extent, local

Finish = Callable[[Sequence[Expr], Expr, Expr], Expr]  # (sums, token, row or vector of rows) -> result
_Sums = list[tuple[Sums, int]]  # of each matrix: where the sums are, and their number there
_FLOATS = {"f32": "float32", "f16": "float16"}


@dataclass(frozen=True)
class Output:
    """One result: `finish` of the products of `matrices` (their numbers; all of `rows` rows). Without `finish`, the
    sums of its one matrix. `quantised`: written as `quantise` would write it; `rows` is then a multiple of 32."""

    matrices: tuple[int, ...]
    rows: int
    finish: Finish | None = None
    quantised: bool = False

    def span(self, spec: Spec) -> int:
        """Tiles that one task takes of each matrix: of quantised results a group's, of float weights so many that
        there are sums enough to fill the registers (a block of tokens) or to wait for each other (one token)."""
        if self.quantised:
            return GROUP // spec.isa.rows
        if spec.form not in _FLOATS:
            return 1
        wanted = (4 if isinstance(spec.n, int) else spec.isa.float_tiles) // len(self.matrices)
        return gcd(pad(self.rows, spec.isa.rows) // spec.isa.rows, max(wanted, 1))

    def tasks(self, spec: Spec) -> int:
        return pad(self.rows, spec.isa.rows * self.span(spec)) // (spec.isa.rows * self.span(spec))


@dataclass(frozen=True)
class Spec:
    """A kernel of products: `form` of the weights, `columns` of the input, the `rows` of each matrix."""

    isa: Isa
    form: str
    n: Extent
    columns: int
    rows: tuple[int, ...]


def products(
    spec: Spec,
    operands: Sequence[tuple[Sequence[Expr | int], str]],
    outputs: Callable[[Sequence[tirx.Buffer]], Sequence[Output]],
) -> tirx.PrimFunc:
    """Arguments: the input, the matrices, tensors of `operands` (shape, dtype), the results.

    Input: x (1, n, columns) float32 for float weights; for quantised ones q (n, G, 32) int8, scale (n, G) float32
    and total (n, G) int32 as `quantise` makes them (G = groups of columns). A matrix: data, and scales when
    quantised, as ir.packing says. `outputs` says what becomes of the sums, given the operands' buffers. A result:
    (1, n, rows) float32, or q, scale and total.
    """
    with IRBuilder() as builder, B.prim_func(private=True, s_tir=True):
        B.func_attr({"tirx.noalias": True})
        given = _given(spec)
        read = [B.arg(f"operand{i}", B.buffer(shape, dtype)) for i, (shape, dtype) in enumerate(operands)]
        results = outputs(read)
        written = [_results(spec, output, number) for number, output in enumerate(results)]
        block, size = _block(spec, given)
        ends = list(accumulate(output.tasks(spec) for output in results))
        with B.parallel(tirx.const(0, "int64"), tirx.const(ends[-1], "int64")) as task:
            tasks = [
                lambda t, o=output, w=buffers: _task(spec, size, block, o, w, t)
                for output, buffers in zip(results, written, strict=True)
            ]
            _dispatch(task, [0, *ends], tasks)
    return builder.get()


def linear_float(isa: Isa, dtype: str, n: Extent, columns: int, rows: int) -> tirx.PrimFunc:
    """x (1, n, columns) float32, data (tiles, columns, R) `dtype` -> (1, n, rows) float32; sums in float32."""
    form = next(form for form, stored in _FLOATS.items() if stored == dtype)
    return products(Spec(isa, form, n, columns, (rows,)), [], lambda _: [Output((0,), rows)])


def linear_quantised(isa: Isa, bits: int, n: Extent, columns: int, rows: int) -> tirx.PrimFunc:
    """q, scale, total, data and scales as `products` says -> (1, n, rows) float32."""
    return products(Spec(isa, f"q{bits}", n, columns, (rows,)), [], lambda _: [Output((0,), rows)])


def _given(spec: Spec) -> tuple[list[tirx.Buffer], list[list[tirx.Buffer]]]:
    """The arguments for the input and for each matrix."""
    isa, n = spec.isa, spec.n
    tiles = [pad(rows, isa.rows) // isa.rows for rows in spec.rows]
    if spec.form in _FLOATS:
        x = B.arg("x", B.buffer((1, n, spec.columns), "float32"))
        shapes = [(t, spec.columns, isa.rows) for t in tiles]
        return [x], [[B.arg(f"data{i}", B.buffer(s, _FLOATS[spec.form]))] for i, s in enumerate(shapes)]
    bits, groups = BITS[spec.form], pad(spec.columns, GROUP) // GROUP
    read = [
        B.arg("q", B.buffer((n, groups, GROUP), "int8")),
        B.arg("scale", B.buffer((n, groups), "float32")),
        B.arg("total", B.buffer((n, groups), "int32")),
    ]
    matrices = []
    for i, t in enumerate(tiles):
        codes = B.buffer((t, groups, bits, isa.rows, 4), "int8" if bits == 8 else "uint8")
        scales = B.buffer((t, groups, isa.rows), "float16")
        matrices.append([B.arg(f"data{i}", codes), B.arg(f"scales{i}", scales)])
    return read, matrices


def _block(spec: Spec, given: tuple[list[tirx.Buffer], list[list[tirx.Buffer]]]) -> tuple[BlockProduct, int]:
    """The micro-kernel over the arguments, and the tokens it takes at once."""
    read, matrices = given
    if spec.form in _FLOATS:
        return float_block(spec.isa, read[0], [Matrix(data) for (data,) in matrices]), spec.isa.float_tokens
    q, scale, total = read
    words = B.decl_buffer((*q.shape[:2], STEPS), "int32", data=q.data)
    packed = [
        Matrix(B.decl_buffer(tuple(codes.shape)[:4], "int32", data=codes.data), scales)
        for codes, scales in matrices
    ]
    pairs = pair_tokens(spec.isa, words, spec.n) if spec.isa.paired and isinstance(spec.n, tirx.Var) else None
    a = Activations(words, scale, total, pairs)
    return quantised_block(spec.isa, BITS[spec.form], a, packed), spec.isa.block(BITS[spec.form])


def _results(spec: Spec, output: Output, number: int) -> list[tirx.Buffer]:
    if not output.quantised:
        return [B.arg(f"out{number}", B.buffer((1, spec.n, output.rows), "float32"))]
    groups = output.rows // GROUP
    return [
        B.arg(f"out{number}_q", B.buffer((spec.n, groups, GROUP), "int8")),
        B.arg(f"out{number}_scale", B.buffer((spec.n, groups), "float32")),
        B.arg(f"out{number}_total", B.buffer((spec.n, groups), "int32")),
    ]


def _dispatch(task: Expr, starts: Sequence[int], bodies: Sequence[Callable[[Expr], None]]) -> None:
    """Run the body whose range `starts[i]`..`starts[i + 1]` holds `task`, with its number in that range."""
    if len(bodies) == 1:
        bodies[0](task - starts[0])
        return
    with B.If(task < starts[1]):
        with B.Then():
            bodies[0](task - starts[0])
        with B.Else():
            _dispatch(task, starts[1:], bodies[1:])


def _task(
    spec: Spec, size: int, block: BlockProduct, output: Output, written: list[tirx.Buffer], task: Expr
) -> None:
    """All tokens of one span of tiles of an output."""
    isa, span = spec.isa, output.span(spec)

    def float_tiles(first: Expr | int, tokens: int) -> None:
        tiles = [task * span + s for s in range(span)]
        together = spec.form in _FLOATS or tokens == 1
        for tile, sums in zip(
            tiles, _multiply(block, output.matrices, tiles, first, tokens, together), strict=True
        ):
            destination = _Destination(written[0], lambda m: [0, first + m], tile * isa.rows)
            _finish(isa, output, sums, tile, first, tokens, destination)

    def quantised_tiles(first: Expr | int, tokens: int) -> None:
        group = local((tokens, GROUP))
        with B.serial(span) as s:
            tile = task * span + s
            together = tokens == 1 and not isa.in_turn
            [sums] = _multiply(block, output.matrices, [tile], first, tokens, together)
            _finish(isa, output, sums, tile, first, tokens, _Destination(group, lambda m: [m], s * isa.rows))
        with B.serial(tokens) as m:
            quantise_group(group[m, tirx.Ramp(0, 1, GROUP)], first + m, task, *written)

    over_tokens(size, spec.n, quantised_tiles if output.quantised else float_tiles)


@dataclass(frozen=True)
class _Destination:
    """Where a tile's results go: [*token(m), start + row of the tile] of `out`, for token m of the block."""

    out: tirx.Buffer
    token: Callable[[int], list[Expr | int]]
    start: Expr

    def store(self, value: Expr, m: int, row: Expr | int) -> None:
        B.buffer_store(self.out, value, [*self.token(m), row])


def _finish(
    isa: Isa,
    output: Output,
    get: _Sums,
    tile: Expr,
    first: Expr | int,
    tokens: int,
    destination: _Destination,
) -> None:
    """Write what `finish` makes of tile `tile`'s sums of each matrix; of the last, the rows there are."""
    finish = output.finish or (lambda sums, token, row: sums[0])
    rest = output.rows % isa.rows

    def whole() -> None:
        for m in range(tokens):
            for p in range(0, isa.rows, isa.lanes):
                sums = [s.vector(i, m, p // isa.lanes) for s, i in get]
                value = finish(sums, first + m, tirx.Ramp(tile * isa.rows + p, 1, isa.lanes))
                destination.store(value, m, tirx.Ramp(destination.start + p, 1, isa.lanes))

    if rest == 0:
        whole()
        return
    with B.If(tile < output.rows // isa.rows):
        with B.Then():
            whole()
        with B.Else():
            for m in range(tokens):
                for r in range(rest):
                    sums = [s.scalar(i, m, r) for s, i in get]
                    destination.store(finish(sums, first + m, tile * isa.rows + r), m, destination.start + r)


def _multiply(
    block: BlockProduct,
    matrices: Sequence[int],
    tiles: Sequence[Expr],
    first: Expr | int,
    tokens: int,
    together: bool,
) -> list[_Sums]:
    """The sums of each of the tiles: of all of them at once if `together`, so that one sum need not wait for the one
    before, or of one after the other, of which each fills the registers."""
    if not together:
        return [[(block([(number, tile)], first, tokens), 0) for number in matrices] for tile in tiles]
    sums = block([(number, tile) for tile in tiles for number in matrices], first, tokens)
    count = len(matrices)
    return [[(sums, t * count + i) for i in range(count)] for t in range(len(tiles))]
