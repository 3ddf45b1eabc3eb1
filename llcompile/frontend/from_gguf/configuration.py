"""config.json of a GGUF file's keys.

Every key of the architecture is either taken, or one whose value changes nothing here; all others are refused by name.
So is what transformers reads past when it loads such a file (scaled rotary embeddings, soft caps), because
its answers would then be those of another model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isclose
from typing import Any

from llcompile.frontend.from_gguf.metadata import Keys, refuse
from llcompile.frontend.from_gguf.rotary import scaled_rotary
from llcompile.gguf import Header

_COUNTS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}
_TAKEN = (
    *_COUNTS, "attention.layer_norm_rms_epsilon", "vocab_size", "rope.freq_base", "rope.dimension_count",
    "attention.key_length", "attention.value_length", "attention.sliding_window", "rope.scaling.type",
    "rope.scaling.original_context_length", "attention.sliding_window_pattern", "attention.scale",
)  # fmt: skip
# What changes nothing as long as it has this value. Of `rope.scaling.finetuned` and the layout of the tensors in the
# file that was converted, no value does.
_WITHOUT_EFFECT: Mapping[str, object] = {
    "rope.scaling.factor": 1.0,
    "rope.scale_linear": 1.0,
    "rope.scaling.attn_factor": 1.0,
    "rope.freq_base_swa": 10000.0,
    "expert_count": 0,
    "expert_used_count": 0,
    "nextn_predict_layers": 0,
    "attention.causal": True,
    "use_parallel_residual": False,
}
_IGNORED = ("rope.scaling.finetuned", "tensor_data_layout")
_ROPE_THETA = 10000.0  # where a file does not say, by llama.cpp and transformers
_GEMMA3_HEAD, _GEMMA3_PATTERN = 256, 6


@dataclass(frozen=True)
class _Family:
    """What transformers calls an architecture; whether heads may have a size of their own, and a file must say the
    base of its rotary embedding."""

    model_type: str
    own_head_size: bool = False
    theta_required: bool = False


FAMILIES = {
    "llama": _Family("llama", own_head_size=True),  # Mistral too
    "qwen2": _Family("qwen2", theta_required=True),
    "qwen3": _Family("qwen3", own_head_size=True, theta_required=True),
    "gemma3": _Family("gemma3_text", own_head_size=True, theta_required=True),
    "phi3": _Family("phi3"),
}


def architecture_of(header: Header) -> str:
    """The file's architecture, one of FAMILIES. Raises CompileError F145 for any other, and where it is no model."""
    keys = Keys(header)
    kind, name = keys.text("general.type") or "model", keys.text("general.architecture")
    if kind != "model":
        raise refuse(header, f"it is of general.type {kind!r}, not a model", "Name the model's own file")
    if name not in FAMILIES:
        raise refuse(
            header, f"general.architecture is {name!r}; files of {', '.join(sorted(FAMILIES))} are read"
        )
    return name


def configuration_of(header: Header) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(config.json, what the user should know). Raises CompileError F145 for what is not understood."""
    architecture = architecture_of(header)
    family, keys = FAMILIES[architecture], Keys(header, f"{architecture}.")
    _refuse_unknown(header, keys)
    config: dict[str, Any] = {ours: keys.required_whole(theirs) for theirs, ours in _COUNTS.items()}
    config["model_type"] = family.model_type
    config["rms_norm_eps"] = keys.required_number("attention.layer_norm_rms_epsilon")
    config["vocab_size"] = _vocabulary(header, keys)
    config["tie_word_embeddings"] = "output.weight" not in header.tensors
    config |= token_ids(header, config["vocab_size"])
    theta = keys.required_number if family.theta_required else keys.number
    config["rope_theta"] = theta("rope.freq_base") or _ROPE_THETA
    _refuse_scaling(header, keys, config)
    _take_head_size(header, keys, family, config)
    if architecture == "llama":
        config |= scaled_rotary(header, config)
    if architecture == "gemma3":
        _take_gemma3(header, keys, config)
        return config, ()
    return config, _shorten(keys, config)


def _refuse_unknown(header: Header, keys: Keys) -> None:
    for key in header.values:
        own = key.removeprefix(keys.prefix)
        if own == key or own in _TAKEN or own in _IGNORED:
            continue
        value = header.values[key]
        if own not in _WITHOUT_EFFECT:
            raise refuse(
                header, f"it has the key {key}, which is not understood (its value: {str(value)[:80]!r})"
            )
        if value != _WITHOUT_EFFECT[own]:
            only = _WITHOUT_EFFECT[own]
            raise refuse(header, f"{key} is {str(value)[:80]!r}, which is not supported; {only} is")


def _vocabulary(header: Header, keys: Keys) -> int:
    given = keys.whole("vocab_size")
    if given is not None:
        return given
    table = header.tensors.get("token_embd.weight")
    if table is None:
        raise refuse(header, f"neither {keys.prefix}vocab_size nor the tensor token_embd.weight is there")
    return table.shape[0]


def token_ids(header: Header, vocabulary: int) -> dict[str, Any]:
    """Tokens that begin and end a text, as generation_config.json has them; null where the file names none.

    Ends: of a text, of a turn and of a message. Raises CompileError F145 for one outside the `vocabulary`.
    """
    keys = Keys(header, "tokenizer.ggml.")

    def token(key: str) -> int | None:
        found = keys.whole(key)
        if found is not None and not 0 <= found < vocabulary:
            raise refuse(header, f"{keys.prefix}{key} is {found}, outside the vocabulary of {vocabulary}")
        return found

    ends = [token(f"{kind}_token_id") for kind in ("eos", "eot", "eom")]
    listed = list(dict.fromkeys(end for end in ends if end is not None))
    return {"bos_token_id": token("bos_token_id"), "eos_token_id": listed or None, "pad_token_id": None}


def _refuse_scaling(header: Header, keys: Keys, config: Mapping[str, Any]) -> None:
    kind, original = keys.text("rope.scaling.type"), keys.whole("rope.scaling.original_context_length")
    if kind not in (None, "none"):
        raise refuse(
            header,
            f"{keys.prefix}rope.scaling.type is {kind!r}: scaled rotary embeddings are not read from GGUF",
        )
    if original is not None and original < config["max_position_embeddings"]:
        raise refuse(
            header,
            f"{keys.prefix}rope.scaling.original_context_length is {original}, the context "
            f"{config['max_position_embeddings']}: scaled rotary embeddings are not read from GGUF",
        )


def _take_head_size(header: Header, keys: Keys, family: _Family, config: dict[str, Any]) -> None:
    """What size heads have, all of which turns by position."""
    usual = config["hidden_size"] // max(1, config["num_attention_heads"])
    size = keys.whole("attention.key_length")
    if size is None and family.model_type == "llama":
        size = keys.whole("rope.dimension_count")
    size = usual if size is None else size
    expected = {"rope.dimension_count": size, "attention.value_length": size}
    if family.own_head_size:
        config["head_dim"] = size
    else:
        expected["attention.key_length"] = usual
    for key, wanted in expected.items():
        given = keys.whole(key)
        if given not in (None, wanted):
            raise refuse(header, f"{keys.prefix}{key} is {given}, not the {wanted} of a head: not supported")
    scale = keys.number("attention.scale")
    if scale is not None and not isclose(scale, max(1, size) ** -0.5, rel_tol=1e-6):
        raise refuse(header, f"{keys.prefix}attention.scale is {scale}, not that of heads of {size}")


def _take_gemma3(header: Header, keys: Keys, config: dict[str, Any]) -> None:
    """Windows of five layers in six. Files do not say by what scores are scaled: 1 / 16 where heads have 256."""
    if config["head_dim"] != _GEMMA3_HEAD:
        raise refuse(
            header,
            f"heads have {config['head_dim']}: by what Gemma 3 scales their scores then, the file does not say; with "
            f"{_GEMMA3_HEAD} it can be read",
        )
    config["sliding_window"] = keys.required_whole("attention.sliding_window")
    pattern = header.values.get(f"{keys.prefix}attention.sliding_window_pattern", _GEMMA3_PATTERN)
    in_turn = [(layer + 1) % _GEMMA3_PATTERN != 0 for layer in range(config["num_hidden_layers"])]
    if pattern not in (_GEMMA3_PATTERN, in_turn):
        raise refuse(
            header, f"{keys.prefix}attention.sliding_window_pattern is not the {_GEMMA3_PATTERN} of Gemma 3"
        )


def _shorten(keys: Keys, config: dict[str, Any]) -> tuple[str, ...]:
    """Where a file names a window that other readers of GGUF leave out, texts end where it would begin to matter."""
    window, most = keys.whole("attention.sliding_window"), config["max_position_embeddings"]
    if window is None or window >= most or window < 1:
        return ()
    config["max_position_embeddings"] = window
    return (
        f"{keys.header.path}: --context is at most {window} of {most}, because the file has a sliding window "
        f"({keys.prefix}attention.sliding_window), which readers of such files leave out",
    )
