"""Rotary frequencies that depend on the length of the text, and how long a text may be for them to be constant.

transformers changes the frequencies of two kinds while text grows, and those of keys that are cached already with them:
LongRoPE (arXiv 2402.13753) takes its long factors beyond the original length, dynamic NTK stretches the base beyond
max_position_embeddings. Up to there both have the frequencies that the model is built with. A graph holds one set, so
longer texts are not for it. The other kinds (linear, llama3, YaRN) never change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from llcompile.ir.errors import CompileError

_STATIC = "static"
LONG, DYNAMIC = "longrope", "dynamic"


@dataclass(frozen=True)
class RotaryLimit:
    """The most `positions` of a text for which rotary embedding of `kind` has constant frequencies."""

    positions: int
    kind: str


def fix_frequencies(model: PreTrainedModel) -> RotaryLimit | None:
    """Make every rotary embedding of `model` keep the frequencies that it was built with; None: all do anyway.

    LongRoPE's are then the short ones, and its factor on cos and sin, which follows from the ratio of
    max_position_embeddings to the original length whatever the text's length, is the module's own. Raises
    CompileError F112 when the configuration asks for a kind that no module of the model shows.
    """
    limits = [limit for module in model.modules() for limit in _fix(module)]
    asked = rope_kinds(getattr(model.config, "rope_parameters", None)) & {LONG, DYNAMIC}
    unseen = sorted(asked - {limit.kind for limit in limits})
    if unseen:
        raise CompileError(
            "F112",
            f"config.json: rope_type {unseen[0]!r} makes rotary frequencies depend on the length of the text, in a way "
            f"of {type(model).__name__}'s own that is not supported. Use another model.",
        )
    return min(limits, key=lambda limit: limit.positions, default=None)


def _fix(module: nn.Module) -> Iterator[RotaryLimit]:
    """What limits `module`, which then has no kind that changes; its `rope_type` may be one a layer type."""
    kinds, config = getattr(module, "rope_type", None), getattr(module, "config", None)
    if not isinstance(config, PretrainedConfig):
        return
    if isinstance(kinds, str):
        yield from _limits(module, kinds, config.rope_parameters)
        module.rope_type = _frozen(kinds)
    elif isinstance(kinds, Mapping):
        for layer_type, kind in kinds.items():
            yield from _limits(module, kind, config.rope_parameters[layer_type])
        module.rope_type = {layer_type: _frozen(kind) for layer_type, kind in kinds.items()}


def _limits(module: nn.Module, kind: str, parameters: Mapping[str, object]) -> Iterator[RotaryLimit]:
    if kind == LONG:
        yield RotaryLimit(_count(parameters.get("original_max_position_embeddings")), LONG)
    elif DYNAMIC in kind:
        yield RotaryLimit(_count(getattr(module, "max_seq_len_cached", None)), DYNAMIC)


def _frozen(kind: str) -> str:
    return _STATIC if kind == LONG or DYNAMIC in kind else kind


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CompileError(
            "F111",
            f"config.json: original_max_position_embeddings is {value!r}; it must be a number of positions.",
        )
    return value


def rope_kinds(parameters: object) -> set[str]:
    """The rope types of a parameter set, or of one a layer type."""
    if not isinstance(parameters, Mapping):
        return set()
    kinds = {str(parameters["rope_type"])} if "rope_type" in parameters else set()
    return kinds.union(*(rope_kinds(v) for v in parameters.values() if isinstance(v, Mapping)))
