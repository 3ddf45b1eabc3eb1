"""torch.onnx export of a weightless model with a symbolic sequence length."""

from __future__ import annotations

import inspect
from typing import Any

import onnx_ir
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim
from transformers import PreTrainedModel

OPSET = 23
_SAMPLE_TOKENS = 7
_MAX_TOKENS = 1 << 20


class _Positional(torch.nn.Module):
    """The model as a function of token ids and their positions, both (1, n)."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        names = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in names

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        options: dict[str, Any] = {"position_ids": position_ids} if self._takes_positions else {}
        logits: torch.Tensor = self.model(input_ids=input_ids, use_cache=False, **options).logits
        return logits


def export_graph(model: PreTrainedModel, mode: FakeTensorMode) -> onnx_ir.Model:
    """ONNX of `model`: inputs `input_ids`, `position_ids` (1, n), output `logits` (1, n, vocabulary).

    Parameters are initializers without values, named as the model's parameters; nothing is folded.
    """
    with mode:
        ids = torch.zeros((1, _SAMPLE_TOKENS), dtype=torch.long)
        positions = torch.zeros((1, _SAMPLE_TOKENS), dtype=torch.long)
    n = Dim("n", min=2, max=_MAX_TOKENS)
    program = torch.onnx.export(
        _Positional(model).eval(),
        (ids, positions),
        dynamo=True,
        input_names=["input_ids", "position_ids"],
        output_names=["logits"],
        dynamic_shapes=({1: n}, {1: n}),
        opset_version=OPSET,
        optimize=False,
        verbose=False,
    )
    return program.model
