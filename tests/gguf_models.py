"""Small random models of every family as GGUF files, and transformers' own loading of them as the oracle.

Names come from the gguf package's table, and what is not written as it is (the order of Llama's rows, Gemma's norms) is
as llama.cpp's converter writes it: nothing here is taken from the code under test.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers as tf
from safetensors.torch import save_file
from transformers import PreTrainedModel

from tests.models import MAX_POSITIONS, VOCAB, draw_weights

_COMMON: dict[str, Any] = {
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "vocab_size": VOCAB,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_POSITIONS,
    "rms_norm_eps": 1e-5,
}
_THETA = 20000.0
_ROPE: dict[str, Any] = {"rope_parameters": {"rope_type": "default", "rope_theta": _THETA}}
_GEMMA = {"num_hidden_layers": 6, "head_dim": 256, "sliding_window": 16, "query_pre_attn_scalar": 256}


@dataclass(frozen=True)
class Family:
    """How to make the model, and what its file says. `kinds`: the types of its matrices, by turns."""

    architecture: str
    make: Callable[[], PreTrainedModel]
    kinds: tuple[str, ...]
    more: Mapping[str, Any]


FAMILIES = {
    "llama": Family(
        "llama",
        lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_COMMON | {"num_hidden_layers": 2}, **_ROPE)),
        ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
        {"rope.dimension_count": 64},
    ),
    "mistral": Family(
        "llama",
        lambda: tf.MistralForCausalLM(tf.MistralConfig(**_COMMON, **_ROPE, sliding_window=None)),
        ("Q4_K", "Q6_K", "Q5_K"),
        {"rope.dimension_count": 64},
    ),
    "qwen2": Family(
        "qwen2",
        lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**_COMMON, **_ROPE, tie_word_embeddings=True)),
        ("Q2_K", "Q3_K", "IQ4_XS"),
        {},
    ),
    "qwen3": Family(
        "qwen3",
        lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**_COMMON, **_ROPE, head_dim=128)),
        ("BF16", "IQ3_XXS", "IQ4_NL", "IQ3_S"),
        {"attention.key_length": 128, "attention.value_length": 128},
    ),
    "gemma3": Family(
        "gemma3",
        lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**_COMMON | _GEMMA)),
        ("Q5_0", "Q8_0", "F16", "MXFP4", "IQ2_S"),
        {"attention.key_length": 256, "attention.value_length": 256, "attention.sliding_window": 16},
    ),
    "phi3": Family(
        "phi3",
        lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**_COMMON, **_ROPE)),
        ("Q4_K", "F32", "Q8_0"),
        {"rope.dimension_count": 64},
    ),
}


def rows_as_pairs(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head reordered from halves to neighbours, as llama.cpp's converter does for its Llama."""
    halves = matrix.reshape(heads, 2, matrix.shape[0] // heads // 2, *matrix.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(matrix.shape))


# Where a block has its scales, float16, by type; a second one scales what is taken off, this many times the first.
_SCALES = {
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ1_S": (0,), "IQ2_XXS": (0,),
    "IQ2_XS": (0,), "IQ2_S": (0,), "IQ3_XXS": (0,), "IQ3_S": (0,), "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip
_OFFSETS = {"Q2_K": 1.5, "Q4_K": 7.5, "Q5_K": 15.5}


def random_blocks(kind: str, rows: int, columns: int, deviation: float, seed: int) -> np.ndarray:
    """Rows of random blocks of type `kind`, uint8, of numbers of about this standard deviation and mean 0."""
    numbers, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (rows * columns // numbers, size), np.uint8)
    if kind == "IQ1_M":  # its scale lies in the upper bits of four words
        _scale_iq1_m(blocks, 1.0)
        found = dequantised(blocks.reshape(rows, -1), kind)
        _scale_iq1_m(blocks, deviation / float(found.std()))
    elif kind == "MXFP4":
        blocks[:, 0] = 127 + int(np.log2(deviation)) - 2
    elif kind == "NVFP4":
        blocks[:, :4] = 0x28 + blocks[:, :4] % 0x18
    else:
        _scale(blocks, kind, 1.0)
        found = dequantised(blocks.reshape(rows, -1), kind)
        _scale(blocks, kind, deviation / float(found.std()))
    return blocks.reshape(rows, -1)


def _scale(blocks: np.ndarray, kind: str, by: float) -> None:
    for place, times in zip(_SCALES[kind], (1.0, _OFFSETS.get(kind, 1.0)), strict=False):
        blocks[:, place : place + 2] = np.array([by * times], "<f2").view(np.uint8)


def _scale_iq1_m(blocks: np.ndarray, by: float) -> None:
    words = blocks[:, 48:56].copy().view("<u2") & 0x0FFF
    bits = int(np.array([by], "<f2").view("<u2")[0])
    words |= np.array([(bits >> shift & 0xF) << 12 for shift in (0, 4, 8, 12)], "<u2")
    blocks[:, 48:56] = words.view(np.uint8)


def dequantised(raw: np.ndarray, kind: str) -> np.ndarray:
    return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])


def stored(values: np.ndarray, kind: str, seed: int) -> np.ndarray:
    """The matrix as type `kind` has it; where the package cannot quantise to it, random blocks as wide."""
    try:
        return gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    except NotImplementedError:
        return random_blocks(kind, *values.shape, float(values.std()), seed)


def header(writer: gguf.GGUFWriter, model: PreTrainedModel, more: Mapping[str, Any]) -> None:
    """The keys that describe the model, `more` under its architecture."""
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    parameters = config.rope_parameters
    writer.add_rope_freq_base(float(parameters.get("full_attention", parameters)["rope_theta"]))
    for key, value in more.items():
        writer.add_key_value(f"{writer.arch}.{key}", value, _type_of(value))


def _type_of(value: Any) -> gguf.GGUFValueType:
    kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING", list: "ARRAY"}
    return gguf.GGUFValueType[kinds[type(value)]]


def tensors(
    model: PreTrainedModel, architecture: str, kinds: Sequence[str]
) -> Iterator[tuple[str, np.ndarray, str]]:
    """Name, bytes and type of every tensor, matrices in `kinds` by turns, vectors in float32."""
    config = model.config
    names = gguf.get_tensor_name_map(
        {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[architecture], config.num_hidden_layers
    )
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = 0
    for name, parameter in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        base, _, suffix = name.rpartition(".")
        values = parameter.float().numpy()
        if architecture == "llama" and base.rpartition(".")[2] in heads:
            values = rows_as_pairs(values, heads[base.rpartition(".")[2]])
        if architecture == "gemma3" and base.endswith("norm"):
            values = values + 1
        kind = kinds[count % len(kinds)] if values.ndim > 1 else "F32"
        count += values.ndim > 1
        theirs = names.get_name(base)
        assert theirs is not None, name
        yield f"{theirs}.{suffix}", stored(values, kind, count), kind


def write(
    path: Path, family: Family, model: PreTrainedModel, kinds: Sequence[str], more: Mapping[str, Any]
) -> None:
    writer = gguf.GGUFWriter(path, family.architecture)
    header(writer, model, {**family.more, **more})
    writer.add_tokenizer_model("no_vocab")
    for name, raw, kind in tensors(model, family.architecture, kinds):
        writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@cache
def family_file(name: str) -> Path:
    """The family's file, written once for all tests."""
    folder = Path(tempfile.mkdtemp(prefix="llcompile-gguf-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    family = FAMILIES[name]
    model = family.make().eval()
    draw_weights(model, seed=3)
    write(folder / f"{name}.gguf", family, model, family.kinds, {"vocab_size": VOCAB} | family.more)
    return folder / f"{name}.gguf"


@cache
def as_transformers_loads(path: Path) -> Path:
    """A Hugging Face directory of what transformers makes of the file: its configuration, its dequantised weights."""
    options = {"dtype": torch.float32, "pad_token_id": 0}  # Phi-3's own is beyond a small vocabulary
    model = tf.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, **options)
    folder = path.parent / f"{path.stem}-loaded"
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    found = {parameter.data_ptr(): name for name, parameter in reversed(model.state_dict().items())}
    state = model.state_dict()
    save_file({name: state[name].contiguous() for name in found.values()}, folder / "model.safetensors")
    return folder
