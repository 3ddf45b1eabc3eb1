"""Formats, alone and side by side: the kernels' logits against the same weights, dequantised, run by transformers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from llcompile import quantize
from llcompile.bundle import plan_record
from llcompile.cluster import load_cluster
from llcompile.ir.graph import WeightParam
from tests.e2e import harness
from tests.models import prompt, save

# Root mean square of the logits' error over that of the logits. f16 differs by the cache's rounding to f16
# alone. The others round activations to 8 bits, a scale for 32 of them, before each of some twenty products in
# a row: about half a percent each time, which these models, drawn wide for diverse text, amplify. That each
# product is exact but for this rounding is tested on the kernels themselves (tests/unit/lower).
BOUNDS = {"f16": 1e-2, "q8": 0.1, "q6": 0.1, "q4": 0.1}


def dequantised_model(model: Path, compiled: harness.CompiledModel, bundle: Path) -> torch.nn.Module:
    """The model with each weight replaced by what the bundle's bytes stand for."""
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    table = copy.deepcopy(reference.get_input_embeddings())
    parameters = dict(reference.named_parameters())
    reference.set_input_embeddings(table)  # a tied table is stored twice, each time in its own layout
    with torch.no_grad():
        for name, param, values in stored_weights(compiled, bundle):
            is_table = param.role == "embedding" and values.shape == table.weight.shape
            target = table.weight if is_table else parameters[name]
            transpose = compiled.model.weights[name].transpose
            target.copy_(torch.from_numpy(values.T if transpose else values))
    return reference.eval()


def stored_weights(
    compiled: harness.CompiledModel, bundle: Path
) -> Iterator[tuple[str, WeightParam, np.ndarray]]:
    """Every use of a weight by a block: its name, and what the bundle holds of it, decoded."""
    (lowered,) = {id(found): found for found in compiled.compiled.lowered.values()}.values()
    packed = {template.template: template.params for template in lowered}
    for block in compiled.graph.blocks:
        paths = sorted(bundle.glob(f"devices/*/weights/block-{block.id:03d}.safetensors"))
        assert len({path.read_bytes() for path in paths}) == 1  # a spare is what runs elsewhere
        tensors = load_file(paths[0])
        for index, param in enumerate(compiled.graph.templates[block.template].weights):
            stored = [one for one in packed[block.template] if one.weight == index]
            parts = {one.part: tensors[one.name] for one in stored}
            yield block.weights[index], param, quantize.unpack(parts, stored[0].layout, param.shape)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(request.param, tmp_path_factory.mktemp("formats") / request.param)


@pytest.mark.parametrize(
    ("family", "quant"),
    [
        *(("llama", quant) for quant in ("f16", "q8", "q6")),
        *((family, "q4") for family in ("llama", "gpt2", "gemma3")),
    ],
    indirect=["family"],
)
def test_logits_are_those_of_the_dequantised_weights(family: Path, quant: str, tmp_path: Path) -> None:
    compiled = harness.compile_model(family, tmp_path / "compiled", quant)
    target = harness.devices_json(tmp_path / "devices.json", 2)
    wishes = harness.options(family, target, quant, use_all=True)
    plan = compiled.bundle(tmp_path / "bundle", load_cluster(target), wishes).plan
    assert plan.precision.weights == quant
    ids = prompt(61)
    found = harness.logits(tmp_path / "bundle", ids)
    with torch.no_grad():
        reference = dequantised_model(family, compiled, tmp_path / "bundle")
        expected = reference(torch.tensor([ids])).logits[0].numpy()
    assert relative_error(found, expected) < BOUNDS[quant]


def formats_of(compiled: harness.CompiledModel) -> set[str]:
    templates = [compiled.graph.templates[block.template] for block in compiled.graph.blocks]
    return {param.format for template in templates for param in template.weights if param.role == "linear"}


@pytest.mark.parametrize("family", ["llama", "gpt2"], indirect=True)
def test_matrices_in_formats_of_their_own(family: Path, tmp_path: Path) -> None:
    """Chosen by --bits: in one bundle, side by side in a kernel's input, and in the pieces of a group."""
    compiled = harness.compile_model(family, tmp_path / "compiled", "q4", bits=5.3)
    assert len(formats_of(compiled)) > 2
    target, ids, found = harness.devices_json(tmp_path / "devices.json", 2), prompt(61), {}
    for groups in ("off", "2") if family.name == "llama" else ("off",):
        wishes = harness.options(family, target, "q4", bits=5.3, tensor_parallel=groups)
        planned = compiled.bundle(tmp_path / groups, load_cluster(target), wishes)
        assert any(stage.is_group for stage in planned.plan.stages) == (groups == "2")
        found[groups] = harness.logits(tmp_path / groups, ids)
    record = plan_record(planned.plan, planned.graph, planned.costs)
    sizes = [
        (sum(prod(w.shape) for w in t.weights if w.role == "linear"), b.bits)
        for t, b in zip(
            (planned.graph.templates[b.template] for b in planned.graph.blocks), record.blocks, strict=True
        )
    ]
    assert 5.0 < sum(size * bits for size, bits in sizes) / sum(size for size, _ in sizes) <= 5.3
    assert all(block.divergence is not None for block in record.blocks if block.bits)
    with torch.no_grad():
        reference = dequantised_model(family, compiled, tmp_path / "off")
        expected = reference(torch.tensor([ids])).logits[0].numpy()
    for logits in found.values():
        assert relative_error(logits, expected) < BOUNDS["q4"]


def test_an_eight_bit_cache(tmp_path: Path) -> None:
    """Beside the same weights with a cache in float16: logits within 5 % (root mean square), nine in ten of the
    likeliest tokens the same, half the memory planned."""
    model = save("llama", tmp_path / "llama")
    target = harness.devices_json(tmp_path / "devices.json", 2)
    ids, found, kept = prompt(61), {}, {}
    for kind in ("f16", "q8"):
        compiled = harness.compile_model(model, tmp_path / kind, "f16", cache=kind)
        wishes = harness.options(model, target, "f16", use_all=True, cache=kind)
        planned = compiled.bundle(tmp_path / f"{kind}-bundle", load_cluster(target), wishes)
        found[kind] = harness.logits(tmp_path / f"{kind}-bundle", ids)
        kept[kind] = sum(block.cache_bytes for block in planned.costs)
    assert 0 < relative_error(found["q8"], found["f16"]) < 0.05
    same = found["q8"].argmax(axis=-1) == found["f16"].argmax(axis=-1)
    assert same.mean() > 0.9
    assert kept["q8"] < 0.65 * kept["f16"]
