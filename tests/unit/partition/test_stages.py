"""A stage owns its devices: who leads it, whose stages are whose, and nobody who picks a device out of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from llcompile.ir.cluster import Cluster, Link
from llcompile.ir.plan import Plan, Stage
from llcompile.partition import plan
from llrun.schema import PlanStatus, TransmissionKind
from tests.unit.partition.cases import OPTIONS, chain, cost, device

CLUSTER = Cluster("h", tuple(device(name, 31_000) for name in ("h", "a", "b")), Link(1e6, 1e-3), {})


@pytest.fixture(scope="module")
def made() -> Plan:
    return plan(tuple(cost(b, 5000) for b in range(14)), chain(14), CLUSTER, OPTIONS)


def test_stage_on_one_device_and_on_a_group() -> None:
    single, group = Stage.on("a", 2, 5), Stage(("a", "b"), (0.75, 0.25), 5, 6)
    assert (single.devices, single.shares, single.lead, list(single.blocks)) == (
        ("a",),
        (1.0,),
        "a",
        [2, 3, 4],
    )
    assert (group.lead, len(group.blocks)) == ("a", 1)


def test_plan_finds_stages_by_block_and_by_device(made: Plan) -> None:
    assert [stage.lead for stage in made.stages] == ["h", "a", "b", "h"]
    assert made.stages_of("h") == (made.stages[0], made.stages[3])
    assert made.stages_of("b") == (made.stages[2],)
    assert made.stages_of("nobody") == ()
    assert [made.stage_of(block).lead for block in (0, 13)] == ["h", "h"]
    assert all(block in made.stage_of(block).blocks for block in range(14))


def test_kinds_are_the_words_of_the_files(made: Plan) -> None:
    assert made.status is PlanStatus.OPTIMAL
    assert {sent.kind for sent in made.transmissions} == {TransmissionKind.SEQUENTIAL}
    words = [str(kind) for kind in (*PlanStatus, *TransmissionKind)]
    assert words == ["optimal", "feasible", "sequential", "residual", "sum"]


def test_plan_says_what_its_figures_are_for(made: Plan) -> None:
    """A prompt of 512 tokens in chunks of 16: one chunk from end to end, then 31 more behind the slowest."""
    assert (made.prompt_tokens, made.new_tokens, made.sequences) == (512, 128, 8)
    assert made.ttft_s == pytest.approx(made.chunk_s + 31 * made.slowest_chunk_s)
    assert made.objective == pytest.approx(made.ttft_s + 128 * made.tpot_s)


def test_nothing_picks_a_device_out_of_a_stage() -> None:
    """Besides the stage itself: a group's work is all its devices'."""
    compiler = Path(__file__).parents[3] / "llcompile"
    users = [path.name for path in sorted(compiler.rglob("*.py")) if ".devices[0]" in path.read_text()]
    assert users == ["plan.py"]
