"""llrun's side of a comparison: bundles of one device, kept while the compiler's sources stay the same, and run."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from shared.peer import CACHE, ROOT
from shared.processes import run
from shared.rounds import Rates
from shared.shapes import TINYLLAMA, devices_file, model_directory, tool

_BYTES = {"float32": 4, "float16": 2, "int8": 1, "uint8": 1, "bfloat16": 2}


@cache
def sources_digest() -> str:
    """Of everything that a bundle's bytes depend on."""
    digest = hashlib.sha256()
    for folder in ("llcompile", "runtime/llrun", "targets", "templates"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".json", ".j2"):
                digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@cache
def bundle(quant: str, threads: int, target: str, context: int | None = None) -> Path:
    """The TinyLlama-1.1B shape with random weights for one device."""
    path = CACHE / f"bundle-{quant}-{threads}-{target}{f'-{context}' if context else ''}"
    stamp = path.with_suffix(".sources")
    if stamp.is_file() and stamp.read_text() == sources_digest() and path.is_dir():
        return path
    shutil.rmtree(path, ignore_errors=True)
    config = TINYLLAMA | ({"max_position_embeddings": context} if context else {})
    model = model_directory(CACHE / f"tinyllama{f'-{context}' if context else ''}", config)
    device = {"name": "one", "target": target, "memory_bytes": 8 * 10**9, "threads": threads}
    target_file = devices_file(CACHE / f"devices-{threads}-{target}.json", [device])
    length = ["--context", str(context)] if context else []
    command = [tool("llcompile"), "build", str(model), "--target", str(target_file), "-o", str(path)]
    run([*command, *length, "--quant", quant, "--random-weights", "1"])
    stamp.write_text(sources_digest())
    return path


@cache
def weights_bytes(path: Path) -> tuple[int, int]:
    """Bytes of all of a bundle's weights, and of those that decoding a token reads: all but the embedding's,
    the first block, of which it reads one row."""
    sizes = [sum(map(_size, block["params"])) for block in _slice(path)["blocks"]]
    return sum(sizes), sum(sizes[1:])


def cache_bytes_a_token(path: Path) -> int:
    """Bytes that one token adds to one sequence's cache."""
    record = _slice(path)
    whole = sum(_size(cache) for block in record["blocks"] for cache in block["caches"])
    return whole // int(record["model"]["context"])


def _size(array: Mapping[str, Any]) -> int:
    return prod(array["shape"]) * _BYTES[array["dtype"]]


@cache
def _slice(path: Path) -> Any:
    return json.loads((path / "devices" / "one" / "slice.json").read_text())


def rates(path: Path, sizes: Sequence[str]) -> Rates:
    """One run of llrun bench."""
    return parse_bench(run(bench(path, sizes)).stdout)


def bench(path: Path, sizes: Sequence[str]) -> list[str | Path]:
    """The command of one run, after one that does not count."""
    # The deadline of a reply: filling a deep cache takes minutes.
    options = ["--no-verify", "--timeout", "1800", "-r", "1", "-o", "json"]
    return [tool("llrun"), "bench", path, *sizes, *options]


def parse_bench(text: str) -> Rates:
    """Tokens a second by test from llrun bench's JSON."""
    return {row["test"]: float(row["tokens_per_s"]) for row in json.loads(text)}
