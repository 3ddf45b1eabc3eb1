"""Groups of devices that compute each block together: greedy tokens are transformers', logits those of one device."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llcompile import graph, pipeline, quantize
from llcompile.bundle import verify
from llcompile.ir.graph import Graph
from llcompile.ir.packing import layout_of
from llcompile.ir.plan import Stage
from tests.e2e import harness
from tests.e2e.grouped import group, planned_as
from tests.models import loaded, prompt, reference_greedy, reference_logits
from tests.unit.graph.oracle import chained
from tests.unit.shard.together import error

NEW_TOKENS = 12
PROMPTS = [prompt(n) for n in (1, 150)]

pytestmark = pytest.mark.slow


def grouped(blocks: Graph, shares: Sequence[float], kind: str) -> tuple[Stage, ...]:
    """All but the ends on a group of the devices d1, d2 and so on, which sums at the last if at one."""
    names, last = [f"d{rank}" for rank in range(1, len(shares) + 1)], len(blocks.blocks) - 1
    middle = group(names, shares, 1, last, kind, root=len(shares) - 1)
    return Stage.on("d0", 0, 1), middle, Stage.on("d0", last, last + 1)


def build(
    folder: Path,
    family: str,
    quant: str,
    shares: Sequence[float],
    kind: str,
    others: Sequence[Sequence[str]] = (),
) -> Path:
    """A bundle of the family for one device (no shares) or with a group of all others; `others`: for which devices its
    blocks are cut as well, evenly."""
    folder.mkdir()
    directory, model = loaded(family)
    target = harness.devices_json(folder / "devices.json", 1 + len(shares))
    options, blocks = harness.options(directory, target, quant), graph.build_graph(model)
    last = len(blocks.blocks)
    stages = grouped(blocks, shares, kind) if shares else (Stage.on("d0", 0, last),)
    divisions = [
        replace(group(names, [1 / len(names)] * len(names), 1, last - 1, kind), division=number)
        for number, names in enumerate(others, 1)
    ]
    planned = planned_as(model, blocks, options, stages, divisions)
    compiled = pipeline.compile_targets(planned, folder)
    pipeline.write(planned, compiled, folder / "bundle")
    assert verify(folder / "bundle") == []
    return folder / "bundle"


@pytest.mark.parametrize(
    ("family", "shares", "kind"),
    [
        ("llama", (0.7, 0.3), "direct"),
        ("llama", (0.5, 0.2, 0.3), "ring"),
        ("bloom", (0.2, 0.5, 0.3), "star"),
        ("phi3", (0.3, 0.2, 0.5), "direct"),
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


@pytest.mark.parametrize("kind", ["direct", "ring"])
def test_a_group_goes_on_without_a_member_that_is_killed(tmp_path: Path, kind: str) -> None:
    """The lead is killed in the middle of an answer: the others go on by halves, from pieces that they hold for that,
    and the tokens are still those of transformers."""
    others = [["d2", "d3"], ["d1", "d3"]]
    bundle = build(tmp_path / "group", "llama", "f32", (0.5, 0.2, 0.3), kind, others)
    files = {path.name for path in (bundle / "devices/d3/weights").iterdir()}
    assert {f"block-001-shard{which}.safetensors" for which in ("", "-1", "-2")} <= files
    command = [sys.executable, "-m", "tests.e2e.losing", str(bundle), "d1", "5", str(NEW_TOKENS)]
    done = subprocess.run([*command, json.dumps(PROMPTS[1])], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["moves"] == [{"reason": "lost", "devices": [["d0"], ["d2", "d3"], ["d0"]]}]
    assert found["tokens"] == reference_greedy(loaded("llama")[0], PROMPTS[1], NEW_TOKENS)


def test_weights_of_four_bits(tmp_path: Path) -> None:
    """As near as one device comes to what the rounded weights give: both round activations to 8 bits. Three heads of 16
    features end within a group of 32."""
    ids = PROMPTS[1][:40]
    alone, together = (
        harness.logits(build(tmp_path / kind, "llama", "q4", shares, kind), ids)
        for kind, shares in (("direct", ()), ("ring", (0.5, 0.25, 0.25)))
    )
    exact = rounded_logits("llama", ids)
    assert deviation(together, exact) < 1.25 * deviation(alone, exact) < 0.1


def rounded_logits(family: str, ids: Sequence[int]) -> np.ndarray:
    """Logits by onnxruntime, in float32, of the model with the values of its 4-bit weights."""
    model = loaded(family)[1]
    blocks = graph.build_graph(model)
    roles = {
        name: weight.role
        for block in blocks.blocks
        for weight, name in zip(blocks.templates[block.template].weights, block.weights, strict=True)
    }
    weights = {
        name: quantize.dequantised(source, layout_of(roles[name], "q4", 16))
        for name, source in model.weights.items()
    }
    return chained(
        blocks, {"input_ids": np.array([ids]), "position_ids": np.arange(len(ids))[None]}, weights
    )[0]


def deviation(found: np.ndarray, expected: np.ndarray) -> float:
    """The mean square of the differences, as a part of the values', its root."""
    return float(np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()))
