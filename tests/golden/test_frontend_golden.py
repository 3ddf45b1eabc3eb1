"""Each pass of the frontend on a small graph, before and after, against committed texts; and what it leaves alone.

UPDATE_GOLDEN=1 rewrites them; read the difference before committing it.
"""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from llcompile.frontend.canonical import VERIFIER, canonical_passes
from llcompile.frontend.canonical.constants import WeightsToInputs
from llcompile.frontend.printer import text
from llcompile.ir.errors import CompileError
from llcompile.passes import Pass, run_passes
from tests.golden.frontend_graphs import CASES, build, raw_parameters

HERE = Path(__file__).parent
PASSES: dict[str, Pass[ir.Model]] = {step.name: step for step in canonical_passes({})}


def compare(found: str, name: str) -> None:
    path = HERE / f"frontend_{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(found)
    assert found == path.read_text()


@pytest.mark.parametrize("name", CASES)
def test_pass(name: str) -> None:
    case = CASES[name]
    model = build(case.graph, case.weights)
    before = text(model)
    after = PASSES["drop-unused"].run(PASSES[name].run(model))
    compare(f"{before}\n---\n\n{text(after)}", name)
    onnx.checker.check_model(ir.to_proto(after))


@pytest.mark.parametrize("name", CASES)
def test_pass_leaves_a_near_miss_alone(name: str) -> None:
    case = CASES[name]
    model = build(case.near, case.weights)
    before = text(model)
    assert text(PASSES[name].run(model)) == before


def test_weights_to_inputs() -> None:
    model = raw_parameters()
    before = text(model)
    after = WeightsToInputs({"w": "layer.weight", "kept": "layer.kept"}).run(model)
    compare(f"{before}\n---\n\n{text(after)}", "weights-to-inputs")


def test_weights_to_inputs_leaves_plain_constants_alone() -> None:
    model = build(CASES["gaussian-units"].graph, ())
    before = text(model)
    assert text(WeightsToInputs({}).run(model)) == before


def test_every_pass_has_a_golden_text() -> None:
    assert set(PASSES) - set(CASES) == {"weights-to-inputs", "require-canonical"}


def test_passes_are_ordered_as_they_require() -> None:
    steps = canonical_passes({})
    with pytest.raises(CompileError, match=r"E111.*products-to-linear requires weights-are-inputs"):
        run_passes(raw_parameters(), [s for s in steps if s.name == "products-to-linear"], VERIFIER)
