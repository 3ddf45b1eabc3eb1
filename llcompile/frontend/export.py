"""torch.onnx export of a weightless model with a symbolic sequence length."""

from __future__ import annotations

import gc
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from traceback import walk_tb
from typing import Any

import onnx_ir
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim
from torch.onnx import OnnxExporterError
from transformers import PreTrainedModel

from llcompile.ir.errors import CompileError

OPSET = 23
_SAMPLE_TOKENS = 7
_MAX_TOKENS = 1 << 20


class _Positional(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
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


@contextmanager
def _quiet() -> Iterator[None]:
    """No exporter chatter, and no garbage collection: it takes a sixth of the time and finds nothing."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export")]
    levels, collecting = [logger.level for logger in loggers], gc.isenabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if collecting:
            gc.enable()


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, then what caused it, to the first cause."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _module_at_fault(error: BaseException, names: Mapping[int, str]) -> str | None:
    """The innermost module being traced, or whose operator was being translated, when `error` rose."""
    innermost = None
    for frame, _ in walk_tb(error.__traceback__):
        this, node = frame.f_locals.get("self"), frame.f_locals.get("node")
        innermost = names.get(id(this), innermost)
        if isinstance(node, torch.fx.Node) and node.meta.get("nn_module_stack"):
            innermost = list(node.meta["nn_module_stack"].values())[-1][0]
    return innermost


def _untraceable(model: PreTrainedModel, error: OnnxExporterError) -> CompileError:
    causes = list(_chain(error))
    for cause in causes:
        if isinstance(cause, CompileError):
            return cause
    names = {id(module): f"model.{name}" for name, module in model.named_modules()}
    modules = [m for c in causes if (m := _module_at_fault(c, names)) is not None]
    module = modules[-1].removeprefix("model").removeprefix(".") if modules else ""
    reason = (str(causes[-1]).strip().splitlines() or [""])[0]
    return CompileError(
        "F122",
        f"{type(model).__name__} cannot be compiled: module {module or 'outermost'} decides by the data, or uses "
        f"an operator without an ONNX form ({type(causes[-1]).__name__}: {reason}). Use another architecture.",
    )


def export_graph(model: PreTrainedModel, mode: FakeTensorMode) -> onnx_ir.Model:
    """ONNX of `model`: inputs `input_ids`, `position_ids` (1, n), output `logits` (1, n, vocabulary).

    Parameters are initializers without values, named as the model's parameters after "model."; nothing is
    folded. Raises CompileError F122 when the model's code cannot be traced.
    """
    with mode:
        ids = torch.zeros((1, _SAMPLE_TOKENS), dtype=torch.long)
        positions = torch.zeros((1, _SAMPLE_TOKENS), dtype=torch.long)
    n = Dim("n", min=2, max=_MAX_TOKENS)
    try:
        with _quiet():
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
    except OnnxExporterError as error:
        raise _untraceable(model, error) from None
    graph: onnx_ir.Model = program.model
    return graph
