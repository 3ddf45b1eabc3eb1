"""A transformers model without weights: parameters are shapes, buffers are real."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, apply_renamings
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llcompile.frontend import attention
from llcompile.frontend.rotary import RotaryLimit, fix_frequencies
from llcompile.ir.errors import CompileError


@dataclass(frozen=True)
class Skeleton:
    """A `model` without weights, the `mode` its parameters are fake in, and what its rotary embedding limits."""

    model: PreTrainedModel
    mode: FakeTensorMode
    rotary: RotaryLimit | None


class _UninitialisedOnMeta(TorchFunctionMode):  # type: ignore[misc]  # torch is untyped here
    """Puts `torch.empty` on the meta device: what modules allocate for weights, nothing that has a value."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func is torch.empty:
            options["device"] = "meta"
        return func(*args, **options)


def build_skeleton(config: PretrainedConfig) -> Skeleton:
    """The model of `config` in float32: attention symbolic, parameters fake, buffers with their values.

    Raises CompileError F113 when transformers cannot build it, F134 when its attention cannot be replaced, F111 and
    F112 for a rotary embedding that cannot be or is not supported.
    """
    attention.register()
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]
    try:
        with _UninitialisedOnMeta():
            model = AutoModelForCausalLM.from_config(
                config, attn_implementation=attention.IMPLEMENTATION, dtype=torch.float32
            )
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RuntimeError,
        ArithmeticError,
        AssertionError,
    ) as error:
        if error.args == (attention.IMPLEMENTATION,):
            raise CompileError(
                "F134",
                f"{architecture} has attention code of its own, which is not supported. Use another model.",
            ) from None
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise CompileError("F113", f"{architecture} cannot be built from config.json ({reason}).") from None
    model.tie_weights()
    adapt = attention.ADAPTERS.get(type(model).__name__)
    if adapt:
        adapt(model)
    rotary = fix_frequencies(model)
    _require_finite(model)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    _replace_parameters(model, mode)
    return Skeleton(model.eval(), mode, rotary)


def aliases(model: PreTrainedModel) -> list[list[str]]:
    """The names of each parameter and persistent buffer; tied parameters have several."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    return list(names.values())


def untie(skeleton: Skeleton, name: str) -> None:
    """Give the parameter of this name, which is tied to another, a place of its own."""
    owner, _, own = name.rpartition(".")
    with skeleton.mode:
        empty = torch.empty(skeleton.model.get_parameter(name).shape, dtype=torch.float32)
        skeleton.model.get_submodule(owner)._parameters[own] = nn.Parameter(empty, requires_grad=False)


def parameter_shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter and persistent buffer, by its first name."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
    return {names[0]: shapes[names[0]] for names in aliases(model)}


def stored_names(model: PreTrainedModel, stored: Iterable[str]) -> dict[str, str]:
    """The checkpoint's name of each tensor by the name that transformers reads it under.

    They differ where a module was renamed since checkpoints were written (GPT-NeoX's embed_out, now lm_head).
    """
    renamings = [t for t in get_model_conversion_mapping(model) if isinstance(t, WeightRenaming)]
    return {apply_renamings(name, renamings): name for name in stored}


def _require_finite(model: PreTrainedModel) -> None:
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point() and not bool(torch.isfinite(buffer).all()):
            raise CompileError(
                "F113",
                f"{type(model).__name__} cannot be built from config.json: {name} comes out infinite or not a number. "
                "Correct the values it is made from (rope_theta, scaling factors).",
            )


def _replace_parameters(model: nn.Module, mode: FakeTensorMode) -> None:
    """Every parameter becomes a fake one of its shape; a shared (tied) one stays shared."""
    fakes: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in fakes:
                with mode:
                    empty = torch.empty(parameter.shape, dtype=torch.float32)
                    fakes[id(parameter)] = nn.Parameter(empty, requires_grad=False)
            module._parameters[name] = fakes[id(parameter)]
