"""Kernels of matrix products alone, beside the memory's and the processor's limits, on this machine.

    python benchmarks/kernels.py [--isa avx512vnni] [--form q4] [--tokens 1] [--threads 1] [-r 5]

Matrices of TinyLlama-1.1B's shapes, of each so many that none is in a cache when its turn comes. Prints, of each
format, shape and number of tokens, the median over the runs of GB of weights and of 10^9 products a second, and their
shares of what was measured beforehand: a plain read of as much memory, and the instruction set's multiplication with
all its operands in registers.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from math import prod

import click
import numpy as np
import tvm
import tvm_ffi
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as B

from llcompile.ir.cluster import Processor
from llcompile.ir.packing import BITS, GROUP, layout_of, packed_params
from llcompile.lower.kernel_passes import kernel_pipeline
from llcompile.lower.kernels.isa import isa_of
from llcompile.lower.kernels.linear import linear_float, linear_quantised
from llcompile.lower.kernels.vector import Expr, intrinsic, local
from llcompile.lower.library import PASSES, target_of
from llrun.memory import reserve

PROCESSORS = {
    "avx512vnni": Processor("x86_64-linux-gnu", "x86-64-v4", ("+avx512vnni",), "avx512vnni"),
    "avx2": Processor("x86_64-linux-gnu", "x86-64-v3", (), "avx2"),
}
SHAPES = [(2048, 2048), (256, 2048), (5632, 2048), (2048, 5632)]  # rows, columns
BYTES = 64 << 20  # of weights in a run: twice what caches hold
FEW = 16  # tokens that do not hide how long the weights take
CHAINS = 12  # multiplications that do not wait for each other


@click.command()
@click.option("--isa", type=click.Choice(sorted(PROCESSORS)), default="avx512vnni", show_default=True)
@click.option(
    "--form",
    "forms",
    multiple=True,
    type=click.Choice([*BITS, "f16", "f32"]),
    default=["q4", "q5", "q6", "q8", "f16"],
)
@click.option("--tokens", multiple=True, type=click.IntRange(min=1), default=[1, 2, 4, 8, 16, 512])
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("-r", "--runs", default=5, show_default=True)
def main(isa: str, forms: Sequence[str], tokens: Sequence[int], threads: int, runs: int) -> None:
    """Print the table."""
    os.environ["TVM_NUM_THREADS"] = str(threads)
    memory = BYTES / seconds(reader(isa), runs) / 1e9
    sys.stdout.write(f"{isa}, {threads} threads, memory {memory:.1f} GB/s\n\n")
    sys.stdout.write("| format | rows x columns | tokens | GB/s | of memory | GMAC/s | of multiply |\n")
    sys.stdout.write("|---|---|---|---|---|---|---|\n")
    for form in forms:
        limit = threads * multiply_rate(isa, form, runs) / 1e9
        for n in tokens:
            for rows, columns in SHAPES:
                run, count, size = products(isa, form, n, rows, columns)
                took = seconds(run, runs)
                read, work = size / took / 1e9, count * n * rows * columns / took / 1e9
                cells = f"{read:.1f} | {read / memory:.0%} | {work:.0f} | {work / limit:.0%}"
                sys.stdout.write(f"| {form} | {rows} x {columns} | {n} | {cells} |\n")
                sys.stdout.flush()


def seconds(run: Callable[[], None], runs: int) -> float:
    """Median of the times of `run`, after one that does not count."""
    run()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def products(isa: str, form: str, n: int, rows: int, columns: int) -> tuple[Callable[[], None], int, int]:
    """Multiply n tokens by different matrices in turn; how many these are, and their bytes."""
    params = packed_params(0, "w", (rows, columns), layout_of("linear", form, isa_of(isa).rows))
    one = sum(param.nbytes for param in params)
    count = max(1, BYTES // one) if n <= FEW else 1
    length = 1 if n == 1 else tirx.Var("n", "int64")
    if form in BITS:
        function = linear_quantised(isa_of(isa), BITS[form], length, columns, rows)
        groups = columns // GROUP
        given = [
            tensor((n, groups, GROUP), "int8"),
            tensor((n, groups), "float32"),
            tensor((n, groups), "int32"),
        ]
    else:
        function = linear_float(isa_of(isa), params[0].dtype, length, columns, rows)
        given = [tensor((1, n, columns), "float32")]
    call, out = compiled(function, isa), tensor((1, n, rows), "float32")
    matrices = [[tensor(param.shape, param.dtype) for param in params] for _ in range(count)]

    def run() -> None:
        for matrix in matrices:
            call(*given, *matrix, out)

    return run, count, count * one


def reader(isa: str) -> Callable[[], None]:
    """Read BYTES, in as many parts as keep all threads busy."""
    parts, lanes = 64, isa_of(isa).lanes
    steps = BYTES // (4 * lanes * parts * 4)
    with IRBuilder() as builder, B.prim_func(private=True, s_tir=True):
        data = B.arg("data", B.buffer((parts, steps, 4, lanes), "int32"))
        out = B.arg("out", B.buffer((parts, lanes), "int32"))
        with B.parallel(0, parts) as part:
            seen = local((4, lanes), "int32")
            for i in range(4):
                B.buffer_store(seen, tirx.const(0, f"int32x{lanes}"), [i, tirx.Ramp(0, 1, lanes)])
            with B.serial(steps) as step:
                for i in range(4):
                    at = tirx.Ramp(0, 1, lanes)
                    B.buffer_store(seen, seen[i, at] ^ data[part, step, i, at], [i, at])
            all_of = seen[0, tirx.Ramp(0, 1, lanes)]
            for i in range(1, 4):
                all_of = all_of ^ seen[i, tirx.Ramp(0, 1, lanes)]
            B.buffer_store(out, all_of, [part, tirx.Ramp(0, 1, lanes)])
    call = compiled(builder.get(), isa)
    given, out_tensor = tensor((parts, steps, 4, lanes), "int32"), tensor((parts, lanes), "int32")
    return lambda: call(given, out_tensor)


def multiply_rate(isa: str, form: str, runs: int) -> float:
    """Products a second of one thread that multiplies what it has in registers."""
    lanes, steps = isa_of(isa).lanes, 1 << 18
    kind, per_lane = ("float32", 1) if form in ("f16", "f32") else ("int32", 4)
    with IRBuilder() as builder, B.prim_func(private=True, s_tir=True):
        data = B.arg("data", B.buffer((CHAINS, lanes), kind))
        sums, at = local((CHAINS, lanes), kind), tirx.Ramp(0, 1, lanes)
        factor = B.Bind(data[0, at])
        for i in range(CHAINS):
            B.buffer_store(sums, data[i, at], [i, at])
        with B.serial(steps):
            for i in range(CHAINS):
                B.buffer_store(sums, multiplied(isa, sums[i, at], factor), [i, at])
        for i in range(CHAINS):
            B.buffer_store(data, sums[i, at], [i, at])
    call, given = compiled(builder.get(), isa), tensor((CHAINS, lanes), kind)
    return steps * CHAINS * lanes * per_lane / seconds(lambda: call(given), runs)


def multiplied(isa: str, total: Expr, factor: Expr) -> Expr:
    """One step of the instruction set's multiplication."""
    if "float32" in str(total.ty):
        return total * factor + factor
    if isa == "avx512vnni":
        code = tirx.reinterpret("int8x64", factor)
        return intrinsic("int32x16", "llvm.x86.avx512.vpdpbusd.512", total, code, code)
    codes, halves = tirx.reinterpret("int8x32", total), "llvm.x86.avx2.pmadd.ub.sw"
    return tirx.reinterpret(
        "int32x8", intrinsic("int16x16", halves, codes, tirx.reinterpret("int8x32", factor))
    )


def compiled(function: tirx.PrimFunc, isa: str) -> Callable[..., None]:
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    with tvm.transform.PassContext(config=PASSES):
        built = tvm.tirx.build(module, target=target_of(PROCESSORS[isa]), pipeline=kernel_pipeline())
    kernel: Callable[..., None] = built["main"]
    return kernel


def tensor(shape: Sequence[int], dtype: str) -> tvm_ffi.Tensor:
    """Ones, on huge pages."""
    array = reserve(prod(shape) * np.dtype(dtype).itemsize, huge=True).view(dtype).reshape(tuple(shape))
    array[...] = 1
    return tvm_ffi.from_dlpack(array)


if __name__ == "__main__":
    main()
