"""llama.cpp as the peer: built once from the source archive of llama-cpp-python on PyPI, run, and its output read.

Needs cmake and a C++ compiler. Everything is kept in .cache/peer.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import gguf

from shared.gguf_files import write_random
from shared.processes import run
from shared.rounds import Rates
from shared.shapes import TINYLLAMA

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "peer"
SOURCE = "llama-cpp-python==0.3.36"
FORMATS = {"q4": "Q4_0", "q8": "Q8_0", "f16": "F16"}
_COMMON = ("-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_CURL=OFF", "-DBUILD_SHARED_LIBS=OFF")
_AVX2 = tuple(f"-DGGML_{name}=ON" for name in ("AVX", "AVX2", "FMA", "F16C", "BMI2"))
_AVX512 = tuple(
    f"-DGGML_{name}=ON" for name in ("SSE42", "AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16")
)
# Build folder: switches, programs. Native takes what this processor offers.
BUILDS = {
    "build": (
        ("-DGGML_NATIVE=ON",),
        ("llama-bench", "llama-quantize", "llama-batched-bench", "llama-perplexity"),
    ),
    "build-rpc": (
        ("-DGGML_NATIVE=ON", "-DGGML_RPC=ON"),
        ("llama-bench", "llama-quantize", "ggml-rpc-server"),
    ),
    "build-avx2": (("-DGGML_NATIVE=OFF", *_AVX2, "-DGGML_AVX512=OFF"), ("llama-bench",)),
}
# For llama-server alone: without AMX, whose kernels crash with matrices of 576 columns in this release.
SERVER_BUILDS = {
    "build-avx512": (("-DGGML_NATIVE=OFF", *_AVX2, *_AVX512), ("llama-server",)),
    "build": (("-DGGML_NATIVE=ON",), ("llama-server",)),
}


def built(folder: str, *wanted: str) -> Path:
    """Folder of the programs of a build of BUILDS or SERVER_BUILDS, those `wanted` instead of its usual ones, made on
    first use (some ten minutes of processor time)."""
    switches, usual = (SERVER_BUILDS | BUILDS)[folder]
    programs = wanted or usual
    build = CACHE / folder
    missing = [name for name in programs if not (build / "bin" / name).is_file()]
    if missing:
        if not (build / "CMakeCache.txt").is_file():
            configure = ["cmake", "-S", str(source()), "-B", str(build), *_COMMON, *switches]
            subprocess.run(configure, check=True, stdout=sys.stderr)
        targets = [word for name in missing for word in ("--target", name)]
        make = ["cmake", "--build", str(build), *targets, "-j", str(os.cpu_count() or 1)]
        subprocess.run(make, check=True, stdout=sys.stderr)
    return build / "bin"


def source() -> Path:
    """llama.cpp's source folder, downloaded on first use."""
    folder = CACHE / SOURCE.replace("==", "-").replace("llama-cpp-python", "llama_cpp_python")
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        name = SOURCE.split("==")[0]
        pip = [sys.executable, "-m", "pip", "-q", "download", "--no-deps", "--no-binary", name]
        subprocess.run([*pip, "-d", str(CACHE), SOURCE], check=True, stdout=sys.stderr)
        with tarfile.open(CACHE / f"{folder.name}.tar.gz") as packed:
            packed.extractall(CACHE, filter="data")
    return folder / "vendor" / "llama.cpp"


def weights(quant: str, folder: str = "build") -> Path:
    """The TinyLlama-1.1B shape with random weights, quantised as the llama-quantize of a build does it by default."""
    half = CACHE / "tinyllama-F16.gguf"
    if not half.is_file():
        write_random(half, TINYLLAMA)
    wanted = CACHE / f"tinyllama-{FORMATS[quant]}.gguf"
    if not wanted.is_file():
        quantise(half, wanted, FORMATS[quant], folder=folder)
    return wanted


def quantise(given: Path, wanted: Path, format: str, *options: str, folder: str = "build") -> None:
    """llama-quantize, written beside its place and renamed."""
    partial = wanted.with_suffix(".partial")
    run([built(folder, "llama-quantize") / "llama-quantize", *options, given, partial, format])
    partial.rename(wanted)


@cache
def weights_bytes(model: Path) -> tuple[int, int]:
    """Bytes of all of the weights of a GGUF file, and of those that decoding a token reads: all but the
    embedding's, of which it reads one row, unless the output head shares it."""
    sizes = {t.name: int(t.n_bytes) for t in gguf.GGUFReader(model).tensors}
    shared = "output.weight" not in sizes
    return sum(sizes.values()), sum(sizes.values()) - (0 if shared else sizes["token_embd.weight"])


def rates(folder: str, quant: str, threads: int, sizes: Sequence[str]) -> Rates:
    """One run of llama-bench."""
    command = [built(folder) / "llama-bench", "-m", weights(quant), "-t", str(threads)]
    return parse_bench(run([*command, *sizes, "-r", "1", "-o", "json"]).stdout)


def parse_bench(text: str) -> Rates:
    """Tokens a second by test from llama-bench's JSON."""
    return {_test(row): float(row["avg_ts"]) for row in json.loads(text)}


def _test(row: Mapping[str, int]) -> str:
    return f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}"


def batch_rates(quant: str, threads: int, prompt: int, tokens: int, batches: Sequence[int]) -> Rates:
    """One run of llama-batched-bench: decoding after a prompt of `prompt` tokens a sequence."""
    room = max(batches) * (prompt + tokens)
    command = [built("build") / "llama-batched-bench", "-m", weights(quant), "-t", str(threads)]
    sizes = ["-c", str(room), "-npp", str(prompt), "-ntg", str(tokens)]
    counts = ["-npl", ",".join(map(str, batches)), "--output-format", "jsonl"]
    return parse_batched(run([*command, *sizes, *counts]).stdout)


def parse_batched(text: str) -> Rates:
    """Tokens a second of all sequences together, by `x<sequences>`, from llama-batched-bench's JSON."""
    rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return {f"x{row['pl']}": float(row["speed_tg"]) for row in rows}


def parse_perplexity(text: str) -> float:
    """The final estimate that llama-perplexity prints."""
    found = re.search(r"Final estimate: PPL = ([0-9.]+)", text)
    if not found:
        raise ValueError("llama-perplexity printed no final estimate")
    return float(found.group(1))
