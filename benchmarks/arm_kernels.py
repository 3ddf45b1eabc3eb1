"""Arm kernels judged without an Arm: their inner loops beside llama.cpp's.

    python benchmarks/arm_kernels.py [--cpu cortex-a76] [--count] [--keep FOLDER]

Compiles the matrix kernels for each instruction set, takes the innermost loop with the most products from the
assembly and gives it to llvm-mca (the A76 as its sibling neoverse-n1, for which LLVM has a model): cycles with every
access a hit in the first cache. The same is done with the loops that llama.cpp runs on such a processor, compiled by
zig's clang from the source archive of llama-cpp-python (kept in .cache/peer). Prints Markdown.

Needs llvm-mca-19 and llvm-mc-19 (`apt-get install llvm-19`). --count also runs each decode kernel under qemu and
prints the instructions of a call: it needs .arm/ (`make setup`), gcc, and the qemu-aarch64 of Debian's `qemu-user`,
as the static one has no plugins.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import tvm
from shared.aarch64_loops import DECODER, MCA, Loop, cycles, hottest, inner_loops
from shared.peer import source
from shared.qemu_count import instructions_per_call
from tvm import tirx

from llcompile.ir.cluster import Processor
from llcompile.lower.kernel_passes import kernel_pipeline
from llcompile.lower.kernels.isa import isa_of
from llcompile.lower.kernels.linear import linear_float, linear_quantised
from llcompile.lower.library import target_of

ROWS = COLUMNS = 2048
WEIGHT_BYTES = {"q4": 18 / 32, "q8": 34 / 32, "f16": 2.0, "f32": 4.0}
FLOATS = {"f16": "float16", "f32": "float32"}


@dataclass(frozen=True)
class Core:
    """A processor: instruction set, compilers' name, and llvm-mca's model of it or its nearest relative.

    `hertz`, `cores`, `memory`: of a board that has it (bytes/s: what it reaches, what its memory
    chips could at most).
    """

    isa: str
    mcpu: str
    mattr: tuple[str, ...]
    model: str
    zig: str
    board: str = ""
    hertz: float = 0.0
    cores: int = 0
    memory: tuple[float, float] = (0.0, 0.0)


CORES = {
    "cortex-a72": Core(
        "neon", "cortex-a72", ("+neon",), "cortex-a72", "cortex_a72", "Raspberry Pi 4", 1.5e9, 4, (4e9, 12.8e9)
    ),
    "cortex-a76": Core(
        "neon_dotprod", "cortex-a76", ("+neon", "+dotprod"), "neoverse-n1", "cortex_a76",
        "Raspberry Pi 5", 2.4e9, 4, (9e9, 17.1e9),
    ),
    "cortex-a55": Core("neon_dotprod", "cortex-a76", ("+neon", "+dotprod"), "cortex-a55", "cortex_a76"),
    "neoverse-n2": Core(
        "neon_i8mm", "neoverse-n2", ("-sve", "-sve2"), "neoverse-n2", "neoverse_n2-sve-sve2"
    ),
}  # fmt: skip

# llama.cpp's function for (instruction set, format): one token, many. Its own choice (repack.cpp, ggml-cpu.c).
# Its f16 products of one row and one token serve both; where a processor computes in f16, it sums in f16.
PEER = {
    **{(isa, "f16"): ("ggml_vec_dot_f16",) * 2 for isa in ("neon", "neon_dotprod")},
    ("neon", "q4"): ("ggml_vec_dot_q4_0_q8_0", "ggml_vec_dot_q4_0_q8_0"),
    ("neon", "q8"): ("ggml_vec_dot_q8_0_q8_0", "ggml_vec_dot_q8_0_q8_0"),
    ("neon_dotprod", "q4"): ("ggml_gemv_q4_0_4x4_q8_0", "ggml_gemm_q4_0_4x4_q8_0"),
    ("neon_dotprod", "q8"): ("ggml_gemv_q8_0_4x4_q8_0", "ggml_gemm_q8_0_4x4_q8_0"),
    ("neon_i8mm", "q4"): ("ggml_gemv_q4_0_4x8_q8_0", "ggml_gemm_q4_0_4x8_q8_0"),
    ("neon_i8mm", "q8"): ("ggml_gemv_q8_0_4x8_q8_0", "ggml_gemm_q8_0_4x8_q8_0"),
}
PEER_FILES = ("arch/arm/quants.c", "arch/arm/repack.cpp", "vec.cpp")
HEAD = (
    "| processor | format | program | decode: insns | cycles | weight bytes/cycle | stack | prefill: insns | cycles "
    "| MAC/cycle | stack |\n|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|\n"
)


@click.command(help=__doc__)
@click.option("--cpu", "names", multiple=True, type=click.Choice(sorted(CORES)), default=list(CORES))
@click.option("--count", is_flag=True, help="instructions of a call under qemu, too")
@click.option("--keep", type=click.Path(path_type=Path), help="leave the assembly here")
def main(names: Sequence[str], count: bool, keep: Path | None) -> None:
    """Print the tables."""
    absent = [tool for tool in (MCA, DECODER) if shutil.which(tool) is None]
    if absent:
        sys.exit(f"failed: no {' and '.join(absent)}: apt-get install llvm-19")
    with tempfile.TemporaryDirectory() as scratch:
        folder = keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        sys.stdout.write(HEAD)
        rates = [rate for name in names for rate in compare(name, CORES[name], folder)]
        sys.stdout.write("\n" + boards(rates))
        if count:
            sys.stdout.write("\n" + counts(names, folder))


def compare(name: str, core: Core, folder: Path) -> Iterator[tuple[Core, str, str, float]]:
    """Write the rows of one processor; yield (core, format, program, weight bytes a cycle in decode)."""
    for form in WEIGHT_BYTES:
        for program, loops in pairs(name, core, form, folder):
            decode, prefill = (Counted.of(loop, core.model) for loop in loops)
            bytes_per_cycle = decode.rate * WEIGHT_BYTES[form]
            cells = [name, form, program, *decode.cells(f"{bytes_per_cycle:.2f}")]
            cells += prefill.cells(f"{prefill.rate:.1f}")
            sys.stdout.write("| " + " | ".join(cells) + " |\n")
            sys.stdout.flush()
            yield core, form, program, bytes_per_cycle


@dataclass(frozen=True)
class Counted:
    """A loop and llvm-mca's cycles of one turn."""

    loop: Loop
    cycles: float

    @staticmethod
    def of(loop: Loop, model: str) -> Counted:
        return Counted(loop, cycles(loop, model))

    @property
    def rate(self) -> float:
        """Multiply-adds a cycle."""
        return self.loop.products / self.cycles

    def cells(self, rate: str) -> list[str]:
        return [str(len(self.loop.instructions)), f"{self.cycles:.1f}", rate, str(self.loop.stack_accesses)]


def pairs(name: str, core: Core, form: str, folder: Path) -> Iterator[tuple[str, tuple[Loop, Loop]]]:
    """(program, its loops for one token and for many)."""
    ours = []
    for what in ("decode", "prefill"):
        text = str(built(core, form, what).inspect_source("asm"))
        (folder / f"{name}-{form}-{what}.s").write_text(text)
        ours.append(hottest(inner_loops(text)))
    yield "llcompile", (ours[0], ours[1])
    if (core.isa, form) in PEER:
        text = peer_assembly(core, folder)
        one, many = (hottest(inner_loops(text, function)) for function in PEER[core.isa, form])
        yield "llama.cpp", (one, many)


def built(core: Core, form: str, what: str) -> tvm.runtime.Module:
    """The compiled product with a packed 2048 x 2048 matrix, of one token or of a variable number."""
    isa, n = isa_of(core.isa), 1 if what == "decode" else tirx.Var("n", "int64")
    if form in FLOATS:
        kernel = linear_float(isa, FLOATS[form], n, COLUMNS, ROWS)
    else:
        kernel = linear_quantised(isa, int(form[1]), n, COLUMNS, ROWS)
    module = tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")})
    processor = Processor("aarch64-linux-gnu", core.mcpu, core.mattr, core.isa)
    with tvm.transform.PassContext(config={"tirx.disable_assert": True}):
        return tvm.tirx.build(module, target=target_of(processor), pipeline=kernel_pipeline())


def peer_assembly(core: Core, folder: Path) -> str:
    """llama.cpp's quantised products for `core`, as zig's clang compiles them."""
    ggml = source() / "ggml"
    texts = []
    for file in PEER_FILES:
        out = folder / f"peer-{core.zig}-{Path(file).name}.s"
        if not out.exists():
            compiler = "cc" if file.endswith(".c") else "c++"
            command = [sys.executable, "-m", "ziglang", compiler, "-target", "aarch64-linux-gnu"]
            command += [f"-mcpu={core.zig}", "-O3", "-g0", "-DNDEBUG", "-w", "-S", "-o", str(out)]
            command += [f"-I{ggml / part}" for part in ("include", "src", "src/ggml-cpu")]
            done = subprocess.run(
                [*command, str(ggml / "src/ggml-cpu" / file)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                sys.exit(f"failed: {file} for {core.zig}: {done.stderr.strip()[:400]}")
        texts.append(out.read_text(errors="replace"))
    return "\n".join(texts)


def boards(rates: Sequence[tuple[Core, str, str, float]]) -> str:
    """What the cores of a board could take of weights, beside what its memory gives."""
    lines = [
        "| board | format | program | all cores could read | memory gives | ratio |",
        "|---|---|---|---:|---:|---:|",
    ]
    for core, form, program, rate in rates:
        if core.board:
            takes = rate * core.hertz * core.cores
            reached, most = (f"{x / 1e9:.1f}" for x in core.memory)
            ratio = f"{takes / core.memory[0]:.1f} ({takes / core.memory[1]:.1f})"
            cells = [core.board, form, program, f"{takes / 1e9:.0f} GB/s", f"{reached} ({most}) GB/s", ratio]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def counts(names: Sequence[str], folder: Path) -> str:
    """Instructions of a decode kernel's call under qemu."""
    lines = ["| processor | format | instructions a call | a weight byte |", "|---|---|---:|---:|"]
    distinct = {CORES[name].mcpu: name for name in reversed(names)}
    for name in distinct.values():
        for form, size in WEIGHT_BYTES.items():
            arrays = arguments(CORES[name].isa, form)
            number = instructions_per_call(built(CORES[name], form, "decode"), arrays, name, folder)
            lines.append(f"| {name} | {form} | {number:,} | {number / (ROWS * COLUMNS * size):.3f} |")
    return "\n".join(lines) + "\n"


def arguments(isa: str, form: str) -> list[tuple[str, tuple[int, ...]]]:
    """dtype and shape of each argument of a decode kernel."""
    r, groups = isa_of(isa).rows, COLUMNS // 32
    out = ("float32", (1, 1, ROWS))
    if form in FLOATS:
        return [("float32", (1, 1, COLUMNS)), (FLOATS[form], (ROWS // r, COLUMNS, r)), out]
    codes = (
        ("int8", (ROWS // r, groups, 8, r, 4)) if form == "q8" else ("uint8", (ROWS // r, groups, 4, r, 4))
    )
    read = [("int8", (1, groups, 32)), ("float32", (1, groups)), ("int32", (1, groups))]
    return [*read, codes, ("float16", (ROWS // r, groups, r)), out]


if __name__ == "__main__":
    main()
