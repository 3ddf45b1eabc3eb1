"""Shapes of public models, as config.json contents, and what the benchmarks share."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TINYLLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

TINYLLAMA_128K = TINYLLAMA | {"vocab_size": 128256}

LLAMA_70B = TINYLLAMA | {
    "vocab_size": 128256,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}


def size_of(config: Mapping[str, object], key: str) -> int:
    """A number of a configuration."""
    value = config[key]
    assert isinstance(value, int)
    return value


@dataclass(frozen=True)
class Measured:
    """A finished command: stdout, wall-clock seconds, largest resident set among it and its children."""

    stdout: str
    seconds: float
    peak_bytes: int


def model_directory(path: Path, config: Mapping[str, object]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config, indent=2))
    return path


def measured(command: Sequence[str]) -> Measured:
    """Run `command`; raises CalledProcessError when it fails. Progress stays visible on stderr.

    RUSAGE_CHILDREN keeps the maximum over all children so far: measure the largest command first, or in a
    process of its own.
    """
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - start
    return Measured(done.stdout, seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)


def tool(name: str) -> str:
    """Path of a console script of this virtual environment."""
    return str(Path(sys.executable).parent / name)


def devices_file(path: Path, devices: Sequence[Mapping[str, object]]) -> Path:
    """A devices.json with loopback addresses; the first device is the head."""
    entries = [{"address": f"127.0.0.1:{5700 + i}", **d} for i, d in enumerate(devices)]
    links = {"default": {"bytes_per_s": 1.0e8, "latency_s": 0.0005}}
    cluster = {"schema": 1, "head": devices[0]["name"], "devices": entries, "links": links}
    path.write_text(json.dumps(cluster, indent=2))
    return path
