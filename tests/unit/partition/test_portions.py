"""In what pieces of a prompt a plan reckons."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llcompile import cost, pipeline
from llcompile.ir.cluster import Cluster, Link
from llcompile.ir.plan import Plan
from llcompile.partition import plan, plan_portions
from llcompile.partition.brute_force import brute_force
from llcompile.partition.options import PlanOptions
from llcompile.partition.portions import portions
from llrun.schema import PlanStatus, Precision, Shapes
from tests.unit.partition.cases import OPTIONS, device
from tests.unit.partition.graphs import layered
from tests.unit.partition.test_requests import model

SHAPES = Shapes(1024, 128)
WISHES = replace(OPTIONS, shapes=SHAPES, prompt_tokens=128, new_tokens=4)
GRAPH = layered(6)


def cluster(count: int, flops: float = 1e6, latency_s: float = 1e-5) -> Cluster:
    """Devices so slow in computing that a prompt takes long beside a token."""
    devices = tuple(device(f"d{i}", flops=flops) for i in range(count))
    return Cluster("d0", devices, Link(1e8, latency_s), {})


def planned(where: Cluster, options: PlanOptions = WISHES) -> Plan:
    def make(rows: int | None, limit_s: float) -> Plan:
        return plan(*figures(rows), where, replace(options, portion=rows))

    return plan_portions(options, len(where.devices), make)


def figures(rows: int | None):  # type: ignore[no-untyped-def]
    precision = Precision.of("q4", "f16")
    return cost.block_costs(GRAPH, precision, SHAPES, rows), cost.flows(GRAPH, SHAPES.chunk, portion=rows)


def test_what_is_looked_at() -> None:
    assert portions(replace(WISHES, prompt_tokens=512)) == (64, 32, 16)
    assert portions(replace(WISHES, prompt_tokens=40)) == (32, 16)
    assert portions(replace(WISHES, prompt_tokens=16)) == ()
    assert portions(replace(WISHES, shapes=Shapes(64, 16))) == ()


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("prompt", [60, 128, 700])
@pytest.mark.parametrize("flops", [1e6, 1e8])
def test_the_best_of_all_pieces_is_found(count: int, prompt: int, flops: float) -> None:
    """Every plan of every size, by brute force."""
    where, options = cluster(count, flops), replace(WISHES, prompt_tokens=prompt)
    made = planned(where, options)
    least = []
    for rows in (None, *portions(options)):
        found = brute_force(*figures(rows), where, replace(options, portion=rows))
        assert found is not None
        least.append(found[0])
    assert made.objective == pytest.approx(min(least), rel=1e-9)
    assert made.status is PlanStatus.OPTIMAL
    assert made.bound <= made.objective


def test_a_prompt_in_pieces_is_worth_more_devices() -> None:
    where = cluster(3)
    whole, made = plan(*figures(None), where, WISHES), planned(where)
    assert (whole.portion, made.portion) == (None, 16)
    assert (len(whole.devices), len(made.devices)) == (1, 3)
    assert made.ttft_s < whole.ttft_s / 2
    assert "prompts are reckoned in pieces of 16 tokens" in made.notes[-1]
    assert "(also 128, 64, 32)" in made.notes[-1]


def test_memory_does_not_depend_on_pieces() -> None:
    for rows in (64, 16):
        costs, flows = figures(rows)
        whole, full = figures(None)
        assert [c.activation_bytes for c in costs] == [c.activation_bytes for c in whole]
        assert [f.buffer_bytes for f in flows] == [f.buffer_bytes for f in full]
        assert sum(f.prefill_bytes for f in flows) < sum(f.prefill_bytes for f in full)


def test_throughput_and_a_device_alone_have_full_chunks() -> None:
    assert planned(cluster(1)).portion is None
    assert planned(cluster(3), replace(WISHES, objective="throughput")).portion is None


def test_a_build_says_in_what_pieces_its_prompt_is_reckoned() -> None:
    options = pipeline.BuildOptions(
        "made-up", Path("devices.json"), tensor_parallel="off", prompt_tokens=128, new_tokens=4
    )
    made = pipeline.plan_graph(model(1024), GRAPH, cluster(3), options).plan
    assert made.portion == 16
    assert made.ttft_s == pytest.approx(made.chunk_s + 7 * made.slowest_chunk_s)
