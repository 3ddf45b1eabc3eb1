"""Small random models of every family, and transformers as the oracle: shared by the tests of all stages.

Weights are drawn wide enough that greedy text is diverse: a model that repeats one token would prove nothing.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from transformers import PreTrainedModel

from llcompile.frontend import load_model
from llcompile.ir.model import Model

VOCAB = 1000
MAX_POSITIONS = 512
LEAST_GAP = 1e-3
_IDS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
_COMMON: dict[str, Any] = {
    **_IDS,
    "vocab_size": VOCAB,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": MAX_POSITIONS,
}
_GQA: dict[str, Any] = {**_COMMON, "num_key_value_heads": 2}
_GEMMA: dict[str, Any] = {**_GQA, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16}


def _llama(**changes: Any) -> PreTrainedModel:
    return tf.LlamaForCausalLM(tf.LlamaConfig(**{**_GQA, **changes}))


def _qwen2() -> PreTrainedModel:
    layers = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
    return tf.Qwen2ForCausalLM(tf.Qwen2Config(**_GQA, **layers))


def _qwen3() -> PreTrainedModel:
    return tf.Qwen3ForCausalLM(tf.Qwen3Config(**_GQA, head_dim=32))


def _mistral() -> PreTrainedModel:
    return tf.MistralForCausalLM(tf.MistralConfig(**_GQA, sliding_window=16))


def _gemma2() -> PreTrainedModel:
    caps = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 15.0}
    kinds = ["sliding_attention", "full_attention"]
    return tf.Gemma2ForCausalLM(
        tf.Gemma2Config(**{**_GEMMA, **caps, "num_hidden_layers": 4}, layer_types=kinds * 2)
    )


def _gemma3() -> PreTrainedModel:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    return tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**_GEMMA, layer_types=kinds))


def _phi3() -> PreTrainedModel:
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    return tf.Phi3ForCausalLM(tf.Phi3Config(**_GQA, rope_parameters=rotary))


def _gpt2() -> PreTrainedModel:
    config = tf.GPT2Config(
        **_IDS, vocab_size=VOCAB, n_embd=96, n_layer=3, n_head=6, n_positions=MAX_POSITIONS,
        scale_attn_by_inverse_layer_idx=True,
    )  # fmt: skip
    return tf.GPT2LMHeadModel(config)


def _opt() -> PreTrainedModel:
    config = tf.OPTConfig(
        **_IDS, vocab_size=VOCAB, hidden_size=96, ffn_dim=160, num_hidden_layers=3, num_attention_heads=6,
        word_embed_proj_dim=96, max_position_embeddings=MAX_POSITIONS,
    )  # fmt: skip
    return tf.OPTForCausalLM(config)


def _neox() -> PreTrainedModel:
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
    config = tf.GPTNeoXConfig(
        **{**_COMMON, "num_attention_heads": 3}, rope_parameters=rotary, use_parallel_residual=True
    )
    return tf.GPTNeoXForCausalLM(config)


def _bloom() -> PreTrainedModel:
    return tf.BloomForCausalLM(tf.BloomConfig(**_IDS, vocab_size=VOCAB, hidden_size=96, n_layer=3, n_head=6))


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": _llama,
    "llama-tied": lambda: _llama(tie_word_embeddings=True),
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "mistral": _mistral,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "gpt2": _gpt2,
    "opt": _opt,
    "neox": _neox,
    "bloom": _bloom,
}


_CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
_FINAL_NORMS = ("model.norm", "ln_f", "final_layer_norm")


def _deviation(name: str, shape: torch.Size, tied: bool) -> float:
    """Standard deviation of a matrix: layers, not the last token's embedding, decide the output."""
    if "embed" in name or "wte" in name or "wpe" in name:
        return 0.03 if tied else 0.2
    inputs = shape[0] if name.endswith(_CONV1D) else shape[1]
    return float(2.5 * inputs**-0.5)


@torch.no_grad()
def draw_weights(model: PreTrainedModel, seed: int) -> None:
    """Redraw every parameter; norms stay near identity, but the last one is large: top-two gaps get wide."""
    generator = torch.Generator().manual_seed(seed)
    tied, gemma = bool(model.config.tie_word_embeddings), "Gemma" in type(model).__name__
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 2:
            parameter.copy_(noise * _deviation(name, parameter.shape, tied))
        elif name.endswith("bias") or (gemma and name.endswith("norm.weight")):  # Gemma's is stored less one
            parameter.copy_(noise * 0.1)
        else:
            parameter.copy_(1 + noise * 0.1)
        if ".".join(name.split(".")[:-1]).endswith(_FINAL_NORMS) and "layers" not in name:
            parameter.add_(16.0 if tied else 2.0) if name.endswith("weight") else parameter
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            parameter.add_(1.0)  # sharper attention
        if "word_embeddings_layernorm" in name:
            parameter.mul_(0.15)


def build(family: str, seed: int = 0, heads: tuple[int, int] | None = None) -> PreTrainedModel:
    """The family's model in float32 with diverse weights. `heads`: other numbers of heads and of key heads, the latter
    for families that share them; where heads have a size of their own, matrices grow with their number."""
    model = FAMILIES[family]()
    if heads is not None:
        config = model.config
        config.num_attention_heads, kv_heads = heads
        if hasattr(config, "num_key_value_heads"):
            config.num_key_value_heads = kv_heads
        model = type(model)(config)
    draw_weights(model.eval(), seed)
    return model


def save(
    family: str, path: str | Path, dtype: torch.dtype = torch.float32, shard: str | None = None, seed: int = 0
) -> Path:
    """Write the model as a Hugging Face directory. `shard`: largest shard ("100KB"); None: one file."""
    model = build(family, seed).to(dtype)
    model.save_pretrained(path, max_shard_size=shard or "10GB")
    return Path(path)


@cache
def loaded(family: str) -> tuple[Path, Model]:
    """The family's directory (float32, one file) and the frontend's Model of it: exported once for all tests."""
    directory = Path(tempfile.mkdtemp(prefix="llcompile-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    save(family, directory)
    return directory, load_model(str(directory))


@lru_cache(maxsize=4)
def _reference(path: str) -> PreTrainedModel:
    return tf.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@torch.no_grad()
def reference_logits(path: str | Path, ids: Sequence[int]) -> np.ndarray:
    """Logits (n, vocab) of the model in directory `path` for one prompt, by transformers' eager float32."""
    logits = _reference(str(path))(input_ids=torch.tensor([list(ids)]), use_cache=False).logits
    return logits[0].float().numpy()


def reference_greedy(path: str | Path, ids: Sequence[int], n: int) -> list[int]:
    """The `n` tokens that greedy decoding appends to `ids` (the whole sequence again each time: no cache)."""
    tokens = list(ids)
    for _ in range(n):
        tokens.append(int(reference_logits(path, tokens)[-1].argmax()))
    return tokens[len(ids) :]


def clear_cut(path: str | Path, length: int, new_tokens: int) -> tuple[list[int], list[int]]:
    """The first random prompt whose greedy continuation is diverse, and leads by a gap at each token that no rounding
    can close; and the continuation."""
    for seed in range(20):
        ids = prompt(length, seed)
        tokens, gap = greedy_and_gap(path, ids, new_tokens)
        if gap > LEAST_GAP and len(set(tokens)) >= new_tokens // 2:
            return ids, tokens
    raise AssertionError(f"no prompt of {length} tokens has a diverse and clear-cut continuation")


def greedy_and_gap(path: str | Path, ids: Sequence[int], n: int) -> tuple[list[int], float]:
    """Greedy tokens, and the least gap between the best logit and the second."""
    tokens, least = list(ids), float("inf")
    for _ in range(n):
        logits = reference_logits(path, tokens)[-1]
        second, best = np.partition(logits, -2)[-2:]
        least = min(least, float(best - second))
        tokens.append(int(logits.argmax()))
    return tokens[len(ids) :], least


def prompt(length: int, seed: int = 0) -> list[int]:
    """A random prompt of `length` token ids."""
    return np.random.default_rng(seed + length).integers(0, VOCAB, length).tolist()
