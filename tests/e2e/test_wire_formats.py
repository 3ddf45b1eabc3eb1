"""Whole runs in which activations travel in each format: how far the logits are from float32, and in how many bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llcompile.cluster import load_cluster
from llrun.schema import WireFormat
from tests.e2e import harness
from tests.models import prompt, save

# Root mean square of the logits' error over that of the logits: these models, drawn wide for diverse text, amplify what
# is rounded. Bytes beside those of float32: headers of 32 bytes and narrow rows (64 features) count.
BOUNDS = {"f16": (1e-2, 0.75), "q8": (0.1, 0.6), "q4": (0.6, 0.5)}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model for three devices, compiled once, by format."""
    folder = tmp_path_factory.mktemp("wire")
    model = save("llama", folder / "model")
    compiled = harness.compile_model(model, folder / "compiled")
    target = harness.devices_json(folder / "devices.json", 3)
    for wire in WireFormat:
        wishes = harness.options(model, target, "f32", use_all=True, wire=wire)
        plan = compiled.bundle(folder / wire, load_cluster(target), wishes).plan
        assert {sent.wire for sent in plan.transmissions} == {wire}
    return {wire: folder / wire for wire in WireFormat}


IDS = prompt(40, 4)


def run(bundle: Path) -> tuple[np.ndarray, int]:
    """Logits of IDS, and what devices send for them and eight tokens more."""
    (answer,) = harness.answers(bundle, [IDS], 8)
    return harness.logits(bundle, IDS), sum(device["sent_bytes"] for device in answer["devices"].values())


@pytest.fixture(scope="module")
def exact(bundles: dict[str, Path]) -> tuple[np.ndarray, int]:
    return run(bundles["f32"])


@pytest.mark.slow
@pytest.mark.parametrize("wire", sorted(BOUNDS))
def test_a_run_in_fewer_bytes_gives_nearly_the_same_logits(
    bundles: dict[str, Path], exact: tuple[np.ndarray, int], wire: str
) -> None:
    logits, sent_bytes = run(bundles[wire])
    error = float(np.sqrt(np.mean((logits - exact[0]) ** 2) / np.mean(exact[0] ** 2)))
    most, share = BOUNDS[wire]
    assert 0 < error < most
    assert sent_bytes < share * exact[1]
