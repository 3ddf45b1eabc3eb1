"""f16, q8 and q4: the kernels' logits against the same weights, dequantised, run in float32 by transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from llcompile import cost, quantize
from llcompile.ir.packing import GROUP, Layout, layout_of
from tests.e2e import harness
from tests.models import prompt, save

# Root mean square of the logits' error over that of the logits, on models drawn so wide that they amplify any
# rounding. EXACT: the reference rounds activations to 8 bits in groups of 32 as the kernels do, so that what
# is left is the cache's rounding to f16 and the order of sums. ROUNDED: it does not.
EXACT = 1e-2
ROUNDED = {"f16": 1e-2, "q8": 0.1, "q4": 0.1}
FAMILIES = ("llama", "gpt2", "gemma3")


def dequantised_model(model: Path, compiled: harness.CompiledModel, quant: str) -> torch.nn.Module:
    """The model with each weight replaced by what the bundle's bytes stand for."""
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    parameters = dict(reference.named_parameters())
    for name, layout in weight_layouts(compiled, quant).items():
        source = compiled.model.weights[name]
        values = quantize.dequantised(source, layout)
        with torch.no_grad():
            parameters[name].copy_(torch.from_numpy(values.T if source.transpose else values))
    return reference.eval()


def round_activations(model: torch.nn.Module) -> None:
    """From now on every matrix product of `model` rounds its input to 8 bits, a scale a group of 32."""

    def rounded(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        x = inputs[0]
        groups = torch.nn.functional.pad(x, (0, -x.shape[-1] % GROUP)).unflatten(-1, (-1, GROUP))
        scale = groups.abs().amax(-1, keepdim=True) / 127
        whole = torch.where(scale > 0, torch.round(groups / scale), 0.0)
        return ((whole * scale).flatten(-2)[..., : x.shape[-1]], *inputs[1:])

    for module in model.modules():
        if isinstance(module, torch.nn.Linear | Conv1D):
            module.register_forward_pre_hook(rounded)


def weight_layouts(compiled: harness.CompiledModel, quant: str) -> dict[str, Layout]:
    """How each weight is stored; a tied table as the output head reads it."""
    templates = compiled.graph.templates
    return {
        weight: layout_of(param.role, quant, 8)
        for block in compiled.graph.blocks
        for weight, param in zip(block.weights, templates[block.template].weights, strict=True)
    }


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(request.param, tmp_path_factory.mktemp("formats") / request.param)


@pytest.mark.parametrize("quant", sorted(ROUNDED))
def test_logits_are_those_of_the_dequantised_weights(family: Path, quant: str, tmp_path: Path) -> None:
    compiled = harness.compile_model(family, tmp_path / "compiled", quant)
    target = harness.devices_json(tmp_path / "devices.json", 2)
    wishes = harness.options(family, target, quant, use_all=True)
    plan = compiled.bundle(tmp_path / "bundle", cost.load_cluster(target), wishes).plan
    assert plan.quant == quant
    ids = prompt(61)
    found = harness.logits(tmp_path / "bundle", ids)
    reference = dequantised_model(family, compiled, quant)
    with torch.no_grad():
        assert relative_error(found, reference(torch.tensor([ids])).logits[0].numpy()) < ROUNDED[quant]
        if quant != "f16":
            round_activations(reference)
        assert relative_error(found, reference(torch.tensor([ids])).logits[0].numpy()) < EXACT
