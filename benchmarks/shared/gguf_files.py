"""Models in llama.cpp's file format: a shape with random weights, and the Llama of a Hugging Face directory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

# Tensors of a layer: the name in the file, and in a checkpoint.
_MATRICES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


def write_random(path: Path, config: Mapping[str, Any]) -> None:
    """Tensors of the shape of `config` (config.json of a Llama), drawn at random, in float16, no vocabulary."""
    writer = _header(path, config)
    writer.add_tokenizer_model("no_vocab")
    random = np.random.default_rng(1)

    def draw(rows: int, columns: int) -> np.ndarray:
        return (random.standard_normal((rows, columns), np.float32) * 0.02).astype(np.float16)

    for name, shape in _shapes(config):
        writer.add_tensor(name, np.ones(shape, np.float32) if len(shape) == 1 else draw(*shape))
    _finish(writer)


def _shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner, heads = (config[k] for k in ("hidden_size", "intermediate_size", "num_attention_heads"))
    narrow = hidden // heads * config["num_key_value_heads"]
    rows = {"attn_k": narrow, "attn_v": narrow, "ffn_gate": inner, "ffn_up": inner}
    yield "token_embd.weight", (config["vocab_size"], hidden)
    yield "output.weight", (config["vocab_size"], hidden)
    yield "output_norm.weight", (hidden,)
    for layer in range(config["num_hidden_layers"]):
        yield from ((f"blk.{layer}.{name}.weight", (hidden,)) for name in _NORMS)
        for name in _MATRICES:
            columns = inner if name == "ffn_down" else hidden
            yield f"blk.{layer}.{name}.weight", (rows.get(name, hidden), columns)


def write_llama(path: Path, model: Path) -> None:
    """The Llama with tied embeddings in the directory `model`, with its byte-level BPE vocabulary: matrices
    in float16, as they are stored, the rest in float32."""
    from safetensors.numpy import load_file

    config = json.loads((model / "config.json").read_text())
    writer = _header(path, config)
    _vocabulary(writer, json.loads((model / "tokenizer.json").read_text())["model"], config["vocab_size"])
    given = load_file(model / "model.safetensors")
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    writer.add_tensor("token_embd.weight", given["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", given["model.norm.weight"].astype(np.float32))
    for layer in range(config["num_hidden_layers"]):
        for name, theirs in _NORMS.items():
            norm = given[f"model.layers.{layer}.{theirs}.weight"]
            writer.add_tensor(f"blk.{layer}.{name}.weight", norm.astype(np.float32))
        for name, theirs in _MATRICES.items():
            matrix = given[f"model.layers.{layer}.{theirs}.weight"]
            matrix = interleaved(matrix, heads[name]) if name in heads else matrix
            writer.add_tensor(f"blk.{layer}.{name}.weight", matrix)
    _finish(writer)


def interleaved(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head reordered from halves, which Hugging Face's rotary embedding pairs, to neighbours,
    which llama.cpp's pairs for this architecture."""
    rows, columns = matrix.shape
    halves = matrix.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))


def halves(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Inverse of `interleaved`."""
    rows, columns = matrix.shape
    pairs = matrix.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, columns))


def checkpoint_name(name: str) -> str:
    """A tensor's name in a checkpoint, from that in the file."""
    outside = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    first, *rest = name.removesuffix(".weight").split(".")
    if first != "blk":
        return f"{outside[first]}.weight"
    layer, kind = rest
    return f"model.layers.{layer}.{(_MATRICES | _NORMS)[kind]}.weight"


def _vocabulary(writer: Any, bpe: Mapping[str, Any], size: int) -> None:
    kinds = gguf.TokenType
    tokens = sorted(bpe["vocab"], key=bpe["vocab"].__getitem__)
    assert len(tokens) == size
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([kinds.CONTROL, *[kinds.NORMAL] * (size - 1)])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in bpe["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)


def _header(path: Path, config: Mapping[str, Any]) -> Any:
    writer = gguf.GGUFWriter(str(path), "llama", use_temp_file=True)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    return writer


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
