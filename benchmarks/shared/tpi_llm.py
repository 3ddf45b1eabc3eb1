"""TPI-LLM on several devices, from a folder of its source: given the TinyLlama shape, all weights in memory.

It computes in float32. Its weights can stream from disk instead; that is not asked for here, as it only takes time.
What it imports, of the versions that it asks for, is kept beside the other peers; PyTorch is that of this environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shared.crews import Crew, host_port
from shared.fleet import Places
from shared.peer import CACHE
from shared.processes import run
from shared.shapes import TINYLLAMA, size_of

WHERE = "https://github.com/Lizonghang/TPI-LLM"
_NEEDED = (
    "transformers==4.44.0",
    "tokenizers==0.19.1",
    "huggingface-hub==0.24.7",
    "requests==2.34.2",
    "charset-normalizer==3.5.3",
    "idna==3.20",
    "urllib3==2.8.0",
    "certifi==2026.10.19.post1",
    "filelock==4.3.1",
    "fsspec==2026.9.0",
    "pyyaml==6.0.4",
    "regex==2026.11.19",
    "tqdm==4.70.1",
    "packaging==26.4",
)
_LIBRARY = CACHE / "tpi-python"
_PROGRAM = Path(__file__).with_name("tpi_llm_program.py")
# Python is started with -P: beside the program lies a module that is called as TPI-LLM's package is.
_PORTS = "29500", "29600"


def model(source: Path, devices: int) -> Path:
    """A checkpoint of the TinyLlama shape with random weights, cut for so many devices by TPI-LLM itself."""
    path = CACHE / "tinyllama-checkpoint"
    if not (path / "model.safetensors").is_file():
        _write_checkpoint(path)
    if not (path / f"split-{devices}").is_dir():
        words = [sys.executable, "-P", str(_PROGRAM), "split", str(path), str(devices)]
        subprocess.run(words, check=True, stdout=sys.stderr, env={**os.environ, **_environment(source)})
    return path


def _write_checkpoint(path: Path) -> None:
    """Weights in float16, which TPI-LLM makes float32 of; a tokenizer of words that are numbers."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers

    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({**TINYLLAMA, "hidden_act": "silu"}))
    tokenizer = Tokenizer(
        models.WordLevel({str(n): n for n in range(size_of(TINYLLAMA, "vocab_size"))}, unk_token="0")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    random, tensors = np.random.default_rng(1), {}
    for name, shape in _shapes().items():
        drawn = random.standard_normal(shape, np.float32) * np.float32(0.02)
        tensors[name] = (np.ones(shape) if len(shape) == 1 else drawn).astype(np.float16)
    save_file(tensors, path / "model.partial")
    (path / "model.partial").rename(path / "model.safetensors")


def _shapes() -> dict[str, tuple[int, ...]]:
    hidden, inner = size_of(TINYLLAMA, "hidden_size"), size_of(TINYLLAMA, "intermediate_size")
    narrow = hidden // size_of(TINYLLAMA, "num_attention_heads") * size_of(TINYLLAMA, "num_key_value_heads")
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (size_of(TINYLLAMA, "vocab_size"), hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (size_of(TINYLLAMA, "vocab_size"), hidden),
    }
    for layer in range(size_of(TINYLLAMA, "num_hidden_layers")):
        start = f"model.layers.{layer}"
        rows = {"q": hidden, "k": narrow, "v": narrow, "o": hidden}
        found |= {f"{start}.self_attn.{name}_proj.weight": (count, hidden) for name, count in rows.items()}
        found |= {f"{start}.mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        found[f"{start}.mlp.down_proj.weight"] = (hidden, inner)
        norms = ("input_layernorm", "post_attention_layernorm")
        found |= {f"{start}.{name}.weight": (hidden,) for name in norms}
    return found


def _environment(source: Path) -> dict[str, str]:
    """Of a process that runs TPI-LLM; installs what it needs on first use."""
    if not (_LIBRARY / "transformers").is_dir():
        pip = [sys.executable, "-m", "pip", "-q", "install", "--no-deps", "--target", str(_LIBRARY), *_NEEDED]
        subprocess.run(pip, check=True, stdout=sys.stderr)
    folders = [_LIBRARY, source / "src", source / "examples"]
    return {
        "PYTHONPATH": ":".join(map(str, folders)),
        "OMP_NUM_THREADS": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def milliseconds(
    places: Places, names: Sequence[str], source: Path, prompt: int, new: int
) -> tuple[float, float]:
    """To the first token of a request, and a further one."""
    path, environment = model(source, len(names)), _environment(source)
    set_variables = ["env", *(f"{key}={value}" for key, value in environment.items())]
    with tempfile.TemporaryDirectory() as folder, Crew(places, Path(folder)) as crew:
        master = host_port(places, names[0])[0]

        def words(rank: int) -> list[str]:
            figures = [path, rank, len(names), master, *_PORTS, prompt, new]
            return [*set_variables, sys.executable, "-P", str(_PROGRAM), "generate", *map(str, figures)]

        for rank, name in enumerate(names[1:], 1):
            crew.start(name, words(rank), listens=False)
        said = json.loads(run(places.command(names[0], words(0))).stdout.splitlines()[-1])
    first, *later = said["token_s"]
    return 1e3 * first, 1e3 * (later[-1] - first) / len(later)
