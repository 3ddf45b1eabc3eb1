"""A GGUF file's tensors as those of a Hugging Face checkpoint: names, the order of rows, and what was added to them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from llcompile.frontend.checkpoint import StoredTensor
from llcompile.frontend.from_gguf.configuration import architecture_of
from llcompile.frontend.from_gguf.metadata import REMEDY
from llcompile.frontend.from_gguf.rotary import FREQUENCIES
from llcompile.gguf import Header, Tensor
from llcompile.ir.errors import CompileError

_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Where an architecture has another name for one, or one more.
_OWN = {
    "gemma3": {
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
    "phi3": {"ffn_up": "mlp.gate_up_proj"},
}
_NAME = re.compile(r"(?:blk\.(0|[1-9][0-9]{0,5})\.)?([a-z_]+)\.(weight|bias)")
_ROTARY = re.compile(r"(?:blk\.[0-9]+\.)?rope_(?:freqs|factors_\w+)(?:\.weight)?")
_SHOWN = 5


def stored_tensors(header: Header, config: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Every tensor of the file by its name in a checkpoint. `config`: config.json, as configuration_of makes it.

    llama.cpp has the rows of Llama's queries and keys by pairs that turn together, transformers by halves of a
    head; its Gemma norms hold what they multiply by, which is the checkpoint's weight and 1. Raises CompileError
    F144 for a tensor that has no place in the architecture.
    """
    architecture = architecture_of(header)
    heads = {}
    if architecture == "llama":
        heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    found = {}
    for tensor in header.tensors.values():
        if tensor.name == FREQUENCIES and "rope_scaling" in config:
            continue  # computed of what it was made by
        match = _NAME.fullmatch(tensor.name)
        layer, part, kind = match.groups() if match else (None, "", "")
        names = _OUTSIDE if layer is None else _LAYER | _OWN.get(architecture, {})
        if part not in names:
            raise _unknown(header, tensor, architecture)
        pairs = heads.get(part, 0) if layer is not None else 0
        if pairs and tensor.shape[0] % (2 * pairs):
            raise CompileError(
                "F144",
                f"{header.path}: tensor {tensor.name} has {tensor.shape[0]} rows for {pairs} heads. {REMEDY}.",
            )
        added = 1.0 if architecture == "gemma3" and part.endswith("norm") else 0.0
        prefix = "" if layer is None else f"model.layers.{layer}."
        found[f"{prefix}{names[part]}.{kind}"] = StoredTensor(
            header.path, tensor.offset, tensor.kind, tensor.shape, tensor.name, pairs, added
        )
    return found


def require_all_used(stored: Mapping[str, StoredTensor], used: Collection[str], architecture: str) -> None:
    """Raises CompileError F144 for a tensor that no weight of the model is: without it, answers would be others."""
    for name, tensor in stored.items():
        if name not in used:
            raise CompileError(
                "F144",
                f"{tensor.path}: tensor {tensor.gguf_name} ({name}) has no place in {architecture}. {REMEDY}.",
            )


def _unknown(header: Header, tensor: Tensor, architecture: str) -> CompileError:
    what = f"has no place in models of architecture {architecture}"
    if _ROTARY.fullmatch(tensor.name):
        what = "scales the rotary embedding (LongRoPE, and others than Llama), which is not read from GGUF"
    return CompileError("F144", f"{header.path}: tensor {tensor.name} {what}. {REMEDY}.")
