"""Groups of devices that compute each block together: greedy tokens are transformers', logits those of one device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from llcompile import graph, pipeline, quantize
from llcompile.bundle import verify
from llcompile.ir.graph import Graph
from llcompile.ir.plan import Stage
from tests.e2e import harness
from tests.e2e.grouped import group, planned_as
from tests.models import loaded, prompt, reference_greedy, reference_logits
from tests.unit.shard.together import error

NEW_TOKENS = 12
PROMPTS = [prompt(n) for n in (1, 150)]

pytestmark = pytest.mark.slow


def grouped(blocks: Graph, shares: Sequence[float], kind: str) -> tuple[Stage, ...]:
    """All but the ends on a group of the devices d1, d2 and so on, which sums at the last if at one."""
    names, last = [f"d{rank}" for rank in range(1, len(shares) + 1)], len(blocks.blocks) - 1
    middle = group(names, shares, 1, last, kind, root=len(shares) - 1)
    return Stage.on("d0", 0, 1), middle, Stage.on("d0", last, last + 1)


def build(folder: Path, family: str, quant: str, shares: Sequence[float], kind: str) -> Path:
    """A bundle of the family for one device (no shares) or with a group of all others."""
    folder.mkdir()
    directory, model = loaded(family)
    target = harness.devices_json(folder / "devices.json", 1 + len(shares))
    options, blocks = harness.options(directory, target, quant), graph.build_graph(model)
    last = len(blocks.blocks)
    stages = grouped(blocks, shares, kind) if shares else (Stage.on("d0", 0, last),)
    planned = planned_as(model, blocks, options, stages)
    sequences = pipeline.calibration_sequences(options, model, None)
    calibration = quantize.calibrate(blocks, model.weights, sequences, folder / "c") if sequences else None
    compiled = pipeline.compile_targets(planned, folder)
    pipeline.write(planned, compiled, folder / "bundle", calibration=calibration)
    assert verify(folder / "bundle") == []
    return folder / "bundle"


@pytest.mark.parametrize(
    ("family", "shares", "kind"),
    [
        ("llama", (0.7, 0.3), "direct"),
        ("llama", (0.5, 0.2, 0.3), "ring"),
        ("neox", (0.6, 0.4), "star"),
    ],
)
def test_greedy_tokens_equal_transformers(
    tmp_path: Path, family: str, shares: tuple[float, ...], kind: str
) -> None:
    bundle, directory = build(tmp_path / "group", family, "f32", shares, kind), loaded(family)[0]
    assert len(list((bundle / "devices/d0/weights").iterdir())) == 2
    files = sorted(path.name for path in (bundle / "devices/d2/weights").iterdir())
    assert files[:2] == ["block-001-shard.safetensors", "block-001-tail.safetensors"]
    for ids, result in zip(PROMPTS, harness.answers(bundle, PROMPTS, NEW_TOKENS), strict=True):
        assert result["tokens"] == reference_greedy(directory, ids, NEW_TOKENS)
    expected = reference_logits(directory, PROMPTS[1])
    assert error(harness.logits(bundle, PROMPTS[1]), expected) < 1e-4


def test_weights_of_four_bits_rounded_with_error_feedback(tmp_path: Path) -> None:
    """The logits of one device, as near as 8-bit activations let them be: some round to another code."""
    alone, together = (
        harness.logits(build(tmp_path / kind, "llama", "q4", shares, kind), PROMPTS[1][:40])
        for kind, shares in (("direct", ()), ("ring", (0.5, 0.25, 0.25)))
    )
    assert error(together, alone) < 3e-2
