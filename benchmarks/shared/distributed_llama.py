"""distributed-llama on several devices, from a folder of its source: built there, and given the TinyLlama shape.

Its file of a model is a header of pairs of integers and then the tensors in a fixed order; matrices in its Q40, groups
of 32 weights as a half-precision scale and 16 bytes of nibbles, norms and the embedding in float32.
"""

from __future__ import annotations

import os
import re
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from shared.crews import Crew, host_port
from shared.fleet import Places
from shared.peer import CACHE
from shared.processes import run
from shared.shapes import TINYLLAMA, size_of

WHERE = "https://github.com/b4rtaz/distributed-llama"
_MODEL_MAGIC, _TOKENIZER_MAGIC = 0xA00ABCD, 0x567124
_LLAMA, _SILU, _Q40 = 0xABCD00, 1, 2
_GROUP, _GROUP_BYTES = 32, 18
_SCALE = 0.0043  # of nibbles drawn evenly: weights then deviate by some 0.02
_STEP = re.compile(r"(Eval|Pred)\s*(\d+) ms Sync\s*(\d+) ms")


@dataclass(frozen=True)
class Steps:
    """Milliseconds of each pass over the prompt and of each token, by its own account."""

    prompt: list[int]
    tokens: list[int]


def built(source: Path) -> Path:
    """The program, made in `source` on first use."""
    if not (source / "dllama").is_file():
        make = ["make", "-C", str(source), "-j", str(os.cpu_count() or 1), "dllama"]
        subprocess.run(make, check=True, stdout=sys.stderr)
    return source / "dllama"


def model() -> Path:
    """The TinyLlama shape with random weights."""
    path = CACHE / "tinyllama-q40.m"
    if not path.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            _write_model(file, TINYLLAMA)
        partial.rename(path)
    return path


def _write_model(file: BinaryIO, config: Mapping[str, Any]) -> None:
    random = np.random.default_rng(1)
    pairs = _header(config)
    file.write(struct.pack("<2i", _MODEL_MAGIC, 8 + 8 * len(pairs)))
    for pair in pairs:
        file.write(struct.pack("<2i", *pair))
    for rows, columns, packed in _tensors(config):
        if packed:
            file.write(_drawn(random, rows * columns // _GROUP))
        elif rows == 1:
            file.write(np.ones(columns, np.float32))
        else:
            file.write(random.standard_normal((rows, columns), np.float32) * np.float32(0.02))


def _header(config: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Keys and values; the numbers of the keys are those of its LlmHeaderKey."""
    return [
        (0, 0),
        (1, _LLAMA),
        (11, _SILU),
        (2, config["hidden_size"]),
        (3, config["intermediate_size"]),
        (4, config["num_hidden_layers"]),
        (5, config["num_attention_heads"]),
        (6, config["num_key_value_heads"]),
        (7, 0),
        (8, 0),
        (9, config["vocab_size"]),
        (10, config["max_position_embeddings"]),
        (12, 10000),
        (13, _Q40),
    ]


def _tensors(config: Mapping[str, Any]) -> Iterator[tuple[int, int, bool]]:
    """Rows, columns, and whether in Q40, in the file's order."""
    hidden, inner, words = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))
    narrow = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    yield words, hidden, False
    for _ in range(config["num_hidden_layers"]):
        yield from ((rows, hidden, True) for rows in (hidden, narrow, narrow, hidden, inner))
        yield from ((hidden, inner, True), (inner, hidden, True))
        yield from ((1, hidden, False), (1, hidden, False))
    yield 1, hidden, False
    yield words, hidden, True


def _drawn(random: np.random.Generator, groups: int) -> np.ndarray:
    drawn = random.integers(0, 256, (groups, _GROUP_BYTES), np.uint8)
    drawn[:, :2] = np.frombuffer(np.float16(_SCALE).tobytes(), np.uint8)
    return drawn


def tokenizer() -> Path:
    """Numbered words; a letter is a token of its own, so a prompt of N letters is N tokens, the first included."""
    path, size = CACHE / "tinyllama.t", size_of(TINYLLAMA, "vocab_size")
    words = [b"a", *(b"<%d>" % number for number in range(1, size))]
    pairs = [(0, 1), (1, size), (2, max(map(len, words))), (3, size - 2), (9, 1), (10, 1)]
    packed = [
        struct.pack("<2i", _TOKENIZER_MAGIC, 8 + 8 * len(pairs)),
        *(struct.pack("<2i", *p) for p in pairs),
    ]
    packed.append(struct.pack("<i", size - 1))
    packed += [struct.pack("<fI", 0.0, len(word)) + word for word in words]
    path.write_bytes(b"".join(packed))
    return path


def steps(places: Places, names: Sequence[str], source: Path, prompt: int, new: int) -> Steps:
    """One request of `prompt` tokens and `new` more, buffers in its Q80, one thread each."""
    program, first = built(source), names[0]
    model_path, words = model(), tokenizer()
    # Its sockets can spin or sleep. Spinning takes from the processor time of a device that has a quota.
    common = ["--nthreads", "1", "--net-turbo", "0"]
    with tempfile.TemporaryDirectory() as folder, Crew(places, Path(folder)) as crew:
        for name in names[1:]:
            worker = [program, "worker", "--port", host_port(places, name)[1], *common]
            crew.start(name, worker)
        head = [
            program,
            "inference",
            "--model",
            model_path,
            "--tokenizer",
            words,
            "--buffer-float-type",
            "q80",
        ]
        head += [
            "--prompt",
            "a" * (prompt - 1),
            "--steps",
            str(prompt - 1 + new),
            "--temperature",
            "0",
            *common,
        ]
        if len(names) > 1:
            head += ["--workers", *map(places.address, names[1:])]
        return parse(run(places.command(first, [str(word) for word in head])).stdout)


def parse(text: str) -> Steps:
    found = [(kind, int(computed) + int(sent)) for kind, computed, sent in _STEP.findall(text)]
    prompt = [took for kind, took in found if kind == "Eval"]
    tokens = [took for kind, took in found if kind == "Pred"]
    if not prompt or len(tokens) < 2:
        raise ValueError(f"distributed-llama printed no times: {text[-600:]}")
    return Steps(prompt, tokens)


def milliseconds(found: Steps) -> tuple[float, float]:
    """To the first token, and a further one. The last token of a prompt is passed with the first that is made."""
    return sum(found.prompt) + found.tokens[0], statistics.mean(found.tokens[1:])
