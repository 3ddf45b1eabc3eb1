"""config.json as the configuration of a decoder-only language model, checked before it is believed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llcompile.ir.errors import CompileError

_LARGEST_FILE_BYTES = 1 << 24
_LIMITS = {
    "num_hidden_layers": 1024,
    "hidden_size": 1 << 17,
    "num_attention_heads": 4096,
    "num_key_value_heads": 4096,
    "head_dim": 1 << 14,
    "intermediate_size": 1 << 20,
    "vocab_size": 1 << 24,
    "max_position_embeddings": 1 << 26,
    "sliding_window": 1 << 26,
}
_REQUIRED = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of a file. Raises CompileError F110."""
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST_FILE_BYTES + 1)
        if len(raw) > _LARGEST_FILE_BYTES:
            raise CompileError("F110", f"{path}: more than {_LARGEST_FILE_BYTES} bytes: not a configuration.")
        document = json.loads(raw.decode(), parse_constant=_refuse_constant, parse_float=_finite)
    except OSError as error:
        raise CompileError("F110", f"{path} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise CompileError("F110", f"{path}: not JSON ({error}).") from None
    if not isinstance(document, dict):
        raise CompileError("F110", f"{path}: not a JSON object.")
    return document


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(f"{text} is too large for a number")
    return value


def read_configuration(path: Path) -> PretrainedConfig:
    """The configuration that `path` (config.json) describes, ready for building.

    Raises CompileError: F110 malformed, F111 a value that cannot be, F112 an unsupported architecture. Code
    that a checkpoint brings along (auto_map) is never run: the architecture must be one transformers has.
    """
    document = text_part(read_object(path))
    kind = document.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        remote = ", and code of the checkpoint's own is never run" if "auto_map" in document else ""
        raise CompileError("F112", f"{path}: model_type {kind!r} is not known to transformers{remote}.")
    _require_supported(path, kind, document)
    _require_counts(path, {key: document.get(_spelling(kind, key)) for key in _LIMITS})
    try:
        config = CONFIG_MAPPING[kind].from_dict(dict(document))
    except (
        StrictDataclassError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        ZeroDivisionError,
    ) as error:
        reason = " ".join(str(error).split())
        raise CompileError("F111", f"{path}: a value cannot be ({type(error).__name__}: {reason}).") from None
    _require_sane(path, config)
    _require_dense(path, config)
    config.use_cache, config.return_dict = False, True
    config.output_attentions, config.output_hidden_states = False, False
    return config


def text_part(document: dict[str, Any]) -> dict[str, Any]:
    """Of a model that also sees or hears (Gemma 3 from 4B on), the language model; else the document itself."""
    text = document.get("text_config")
    if not isinstance(text, dict) or text.get("model_type") not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return document
    shared = ("tie_word_embeddings", "eos_token_id", "bos_token_id", "quantization_config")
    inherited = {key: document[key] for key in shared if key in document}
    return inherited | {key: value for key, value in text.items() if key != "architectures"}


def _spelling(kind: str, key: str) -> str:
    """A configuration's own word for a common one (GPT-2 says n_layer)."""
    return str(CONFIG_MAPPING[kind].attribute_map.get(key, key))


def _require_supported(path: Path, kind: str, document: Mapping[str, Any]) -> None:
    native = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    named = document.get("architectures") or [native]
    if not isinstance(named, list) or not all(isinstance(a, str) for a in named if a is not None):
        raise CompileError("F110", f'{path}: "architectures" is not a list of names.')
    if native is None or native not in named:
        raise CompileError(
            "F112",
            f"{path}: architecture {named[0] or kind} is not a decoder-only language model. Use a causal one"
            f"{f' ({native})' if native else ''}.",
        )
    if document.get("is_encoder_decoder") is True or document.get("add_cross_attention") is True:
        raise CompileError(
            "F112", f"{path}: {native} attends to an encoder; only decoder-only models are supported."
        )
    if document.get("quantization_config"):
        raise CompileError(
            "F112",
            f"{path}: the checkpoint is quantised. Use the original one (F32, F16 or BF16) with --quant.",
        )


def _require_counts(path: Path, values: Mapping[str, object]) -> None:
    for key, value in values.items():
        for count in value if isinstance(value, list) else [value]:  # some have one a layer
            if count is None:
                continue
            if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= _LIMITS[key]:
                raise CompileError("F111", f"{path}: {key} is {count!r}; it must be 1 to {_LIMITS[key]}.")


def _require_sane(path: Path, config: PretrainedConfig) -> None:
    values = {key: getattr(config, key, None) for key in _LIMITS}
    _require_counts(path, values)
    absent = [key for key in _REQUIRED if values[key] is None]
    if absent:
        raise CompileError("F111", f"{path}: {', '.join(absent)} not given.")
    heads, width = config.num_attention_heads, config.hidden_size
    if getattr(config, "head_dim", None) is None and width % heads:
        raise CompileError(
            "F111", f"{path}: hidden_size {width} is not a multiple of num_attention_heads {heads}."
        )
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    if heads % kv_heads:
        raise CompileError(
            "F111",
            f"{path}: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}.",
        )


def _require_dense(path: Path, config: PretrainedConfig) -> None:
    for key in _EXPERTS:
        count = getattr(config, key, None)
        if isinstance(count, int) and count > 1:
            architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]
            raise CompileError(
                "F112",
                f"{path}: {architecture} routes tokens to experts ({key} = {count}): the weights read depend "
                "on the data, which is not supported. Use a dense model.",
            )
