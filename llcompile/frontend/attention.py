"""One symbolic attention node a layer, in place of a model's masks, caches and softmax arithmetic.

transformers asks a registry for its attention and mask functions by name (AttentionInterface,
AttentionMaskInterface). Under `IMPLEMENTATION` the mask is nothing at all, and attention is the node
`llcompile::Attention`, which carries what a runtime must know as attributes. A model whose attention code
does not ask the registry needs an adapter: `ADAPTERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from llcompile.ir.errors import CompileError

IMPLEMENTATION = "llcompile"


def _node(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attributes: dict[str, Any]) -> torch.Tensor:
    """q (1, H, n, d), k (1, Hkv, n, d), v (1, Hkv, n, dv) -> (1, n, H, dv)."""
    shape = (q.shape[0], q.shape[1], q.shape[2], v.shape[-1])
    out = torch.onnx.ops.symbolic(
        "llcompile::Attention", (q, k, v), attributes, dtype=q.dtype, shape=shape, version=1
    )
    return out.transpose(1, 2).contiguous()


def _attributes(
    module: nn.Module, scale: float, window: int | None, softcap: float | None, alibi: Sequence[float] = ()
) -> dict[str, Any]:
    """The node's attributes; refuses a module that does not mean causal attention over a layer's cache."""
    layer, name = getattr(module, "layer_idx", None), type(module).__name__
    if layer is None or not getattr(module, "is_causal", True):
        raise CompileError(
            "F130",
            f"module {name} attends without a causal order or a cache of its own: only decoder-only language "
            "models can be compiled. Use one of them.",
        )
    attributes = {"layer": int(layer), "scale": float(scale), "window": int(window or 0)}
    attributes |= {"softcap": float(softcap or 0.0), "causal": 1}
    return attributes | ({"alibi": [float(s) for s in alibi]} if alibi else {})


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function (see AttentionInterface); what the node cannot express is refused."""
    sinks = {"s_aux", "sinks", "position_bias", "bias"} & {k for k, v in options.items() if v is not None}
    if sinks or attention_mask is not None:
        what = ", ".join(sorted(sinks)) or "a mask of its own"
        raise CompileError(
            "F131", f"module {type(module).__name__} adds {what} to its attention scores: not supported."
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _node(query, key, value, _attributes(module, scale, sliding_window, softcap)), None


def _no_mask(*_args: Any, **_options: Any) -> None:
    """Causality, windows and cached positions are the attention node's own affair."""


def alibi_slopes(heads: int) -> list[float]:
    """The slope of each head's linear bias (Press et al., arXiv 2108.12409, section 3).

    For a power of two heads: the geometric sequence of first term and ratio 2^(-8/heads). Else the slopes of
    the next lower power of two, then every other slope of the next higher one.
    """
    power = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    return slopes + [2.0 ** (-4.0 * (i + 1) / power) for i in range(0, 2 * (heads - power), 2)]


class _BloomAttention(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """BLOOM's attention module over the symbolic node: fused qkv per head, ALiBi, residual added inside."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.query_key_value, self.dense = module.query_key_value, module.dense
        self.heads, self.head_dim, self.layer_idx = module.num_heads, module.head_dim, module.layer_idx

    def forward(
        self, hidden_states: torch.Tensor, residual: torch.Tensor, **_: Any
    ) -> tuple[torch.Tensor, None]:
        rows, n, width = hidden_states.shape
        fused = self.query_key_value(hidden_states).view(rows, n, self.heads, 3 * self.head_dim)
        q, k, v = (part.transpose(1, 2) for part in fused.split(self.head_dim, dim=-1))
        attributes = _attributes(self, self.head_dim**-0.5, None, None, alibi_slopes(self.heads))
        out = self.dense(_node(q, k, v, attributes).reshape(rows, n, width))
        return residual + out, None


def _adapt_bloom(model: PreTrainedModel) -> None:
    for block in model.transformer.h:
        block.self_attention = _BloomAttention(block.self_attention)


ADAPTERS: dict[str, Callable[[PreTrainedModel], None]] = {"BloomForCausalLM": _adapt_bloom}


def register() -> None:
    """Make `IMPLEMENTATION` known to transformers. Doing so twice changes nothing."""
    AttentionInterface.register(IMPLEMENTATION, _attention)
    AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)
