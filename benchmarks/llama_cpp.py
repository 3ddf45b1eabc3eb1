"""llrun beside llama.cpp on one device: the TinyLlama-1.1B shape, same bits, same threads, in turn.

    python benchmarks/llama_cpp.py [--quant q4] [--threads 1] [-p 512] [-n 64] [-r 3] [--depth 0]

Builds llama.cpp once, from the source archive of llama-cpp-python on PyPI, for this processor (needs cmake and a
C++ compiler), and writes random weights of the shape in its format. Everything is kept in .cache/peer.
Prints tokens a second of both, mean and standard deviation, and their ratio.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from shapes import TINYLLAMA, devices_file, measured, model_directory, tool

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "peer"
SOURCE = "llama-cpp-python==0.3.36"
WRITER = "gguf==0.19.0"
FORMATS = {"q4": "Q4_0", "q8": "Q8_0", "f16": "F16"}


@dataclass(frozen=True)
class Rate:
    """Tokens a second: mean and standard deviation."""

    mean: float
    deviation: float

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.deviation:.1f}"


@click.command()
@click.option(
    "--quant", "quants", multiple=True, type=click.Choice(sorted(FORMATS)), default=["q4", "q8", "f16"]
)
@click.option("--threads", multiple=True, type=click.IntRange(min=1), default=[1, 2])
@click.option("--target", default="x86-64-v4", show_default=True)
@click.option("-p", "--prompt", default=512, show_default=True)
@click.option("-n", "--new", default=64, show_default=True)
@click.option("-r", "--runs", default=3, show_default=True)
@click.option("-d", "--depth", default=0, show_default=True)
def main(
    quants: Sequence[str], threads: Sequence[int], target: str, prompt: int, new: int, runs: int, depth: int
) -> None:
    """Print llrun's rates beside llama.cpp's."""
    programs = build_peer()
    sizes = ["-p", str(prompt), "-n", str(new), "-r", str(runs), "-d", str(depth)]
    sys.stdout.write(
        "| format | threads | test | llama.cpp, t/s | llrun, t/s | ratio |\n|---|---|---|---|---|---|\n"
    )
    for quant in quants:
        peer_model = peer_weights(programs, quant)
        for count in threads:
            peer = peer_rates(programs, peer_model, count, sizes)
            ours = our_rates(our_bundle(quant, count, target), sizes)
            for test, rate in peer.items():
                ratio = ours[test].mean / rate.mean
                sys.stdout.write(f"| {quant} | {count} | {test} | {rate} | {ours[test]} | {ratio:.2f} |\n")
                sys.stdout.flush()


def build_peer() -> Path:
    """Folder of llama-bench and llama-quantize, built on first use."""
    build = CACHE / "build"
    if (build / "bin" / "llama-quantize").is_file():
        return build / "bin"
    CACHE.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "-q"]
    name = SOURCE.split("==")[0]
    subprocess.run([*pip, "download", "--no-deps", "--no-binary", name, "-d", str(CACHE), SOURCE], check=True)
    [archive] = CACHE.glob("llama_cpp_python-*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(CACHE, filter="data")
    source = archive.with_name(archive.name.removesuffix(".tar.gz")) / "vendor" / "llama.cpp"
    switches = [
        "-DCMAKE_BUILD_TYPE=Release",
        "-DGGML_NATIVE=ON",
        "-DLLAMA_CURL=OFF",
        "-DBUILD_SHARED_LIBS=OFF",
    ]
    subprocess.run(["cmake", "-S", str(source), "-B", str(build), *switches], check=True, stdout=sys.stderr)
    targets = ["--target", "llama-bench", "--target", "llama-quantize", "-j", "2"]
    subprocess.run(["cmake", "--build", str(build), *targets], check=True, stdout=sys.stderr)
    subprocess.run([*pip, "install", "--no-deps", "--target", str(CACHE / "python"), WRITER], check=True)
    return build / "bin"


def peer_weights(programs: Path, quant: str) -> Path:
    """The shape with random weights in the peer's format."""
    half, wanted = CACHE / "tinyllama-F16.gguf", CACHE / f"tinyllama-{FORMATS[quant]}.gguf"
    if not half.is_file():
        write_gguf(half)
    if not wanted.is_file():
        subprocess.run(
            [str(programs / "llama-quantize"), str(half), str(wanted), FORMATS[quant]],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    return wanted


def write_gguf(path: Path) -> None:
    """TinyLlama's tensors, drawn at random, under the names that llama.cpp expects."""
    sys.path.insert(0, str(CACHE / "python"))
    import gguf

    shape = {key: value for key, value in TINYLLAMA.items() if isinstance(value, int)}
    hidden, inner, heads = shape["hidden_size"], shape["intermediate_size"], shape["num_attention_heads"]
    narrow = hidden // heads * shape["num_key_value_heads"]
    writer = gguf.GGUFWriter(str(path), "llama", use_temp_file=True)
    writer.add_context_length(shape["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(shape["num_hidden_layers"])
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(shape["num_key_value_heads"])
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    random = np.random.default_rng(1)

    def matrix(name: str, rows: int, columns: int) -> None:
        writer.add_tensor(
            name, (random.standard_normal((rows, columns), np.float32) * 0.02).astype(np.float16)
        )

    matrix("token_embd.weight", shape["vocab_size"], hidden)
    matrix("output.weight", shape["vocab_size"], hidden)
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    for layer in range(shape["num_hidden_layers"]):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(hidden, np.float32))
        for name, rows, columns in (
            ("attn_q", hidden, hidden),
            ("attn_k", narrow, hidden),
            ("attn_v", narrow, hidden),
            ("attn_output", hidden, hidden),
            ("ffn_gate", inner, hidden),
            ("ffn_up", inner, hidden),
            ("ffn_down", hidden, inner),
        ):
            matrix(f"blk.{layer}.{name}.weight", rows, columns)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def peer_rates(programs: Path, model: Path, threads: int, sizes: Sequence[str]) -> dict[str, Rate]:
    command = [str(programs / "llama-bench"), "-m", str(model), "-t", str(threads), *sizes, "-o", "json"]
    rows = json.loads(measured(command).stdout)
    return {_test(row): Rate(row["avg_ts"], row["stddev_ts"]) for row in rows}


def _test(row: Mapping[str, int]) -> str:
    return f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}"


def our_bundle(quant: str, threads: int, target: str) -> Path:
    """The shape built for one device with that many threads."""
    bundle = CACHE / f"bundle-{quant}-{threads}-{target}"
    model = model_directory(CACHE / "tinyllama", TINYLLAMA)
    device = {"name": "one", "target": target, "memory_bytes": 8 * 10**9, "threads": threads}
    target_file = devices_file(CACHE / f"devices-{threads}.json", [device])
    command = [tool("llcompile"), "build", str(model), "--target", str(target_file), "-o", str(bundle)]
    measured([*command, "--quant", quant, "--random-weights", "1"])
    return bundle


def our_rates(bundle: Path, sizes: Sequence[str]) -> dict[str, Rate]:
    rows = json.loads(measured([tool("llrun"), "bench", str(bundle), *sizes, "-o", "json"]).stdout)
    return {row["test"]: Rate(row["tokens_per_s"], row["sd"]) for row in rows}


if __name__ == "__main__":
    main()
