"""--tensor-parallel from a graph to the plan's record: shares, sums in the map, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llcompile.bundle import plan_json, plan_record
from llcompile.graph import build_graph
from llcompile.ir.cluster import Cluster, Link
from llcompile.ir.errors import USAGE, CompileError
from llcompile.ir.graph import Graph
from llcompile.pipeline import BuildOptions, Planned, plan_graph
from tests.unit.graph.synthetic import decoder
from tests.unit.partition.cases import device
from tests.unit.partition.test_requests import model

LINK = Link(1e10, 1e-7)
CLUSTER = Cluster("h", (device("h", 10**8, 1e9, 1e8), device("a", 10**8, 1e9, 1e8)), LINK, {})


@pytest.fixture(scope="module")
def graph() -> Graph:
    return build_graph(decoder(2, hidden=128, heads=4, kv_heads=2, ffn=256))


def planned(graph: Graph, cluster: Cluster = CLUSTER, **options: Any) -> Planned:
    wishes = BuildOptions("made-up", Path("devices.json"), quant="q8", context=256, **options)
    return plan_graph(model(256), graph, cluster, wishes)


def test_group_is_in_the_record_with_its_sums(graph: Graph) -> None:
    made = planned(graph, tensor_parallel="2", wire="f32")
    told = json.loads(json.dumps(plan_json(plan_record(made.plan, made.graph, made.costs))))
    group = told["stages"][1]
    assert (group["devices"], group["shares"], group["all_reduce"]) == (["h", "a"], [0.5, 0.5], "direct")
    assert group["blocks"] == [1, 5]
    sums = [t for t in told["transmissions"] if t["kind"] == "sum"]
    assert [(t["tensor"], t["from"], t["to"], t["bytes"]) for t in sums[:2]] == [
        ("block1.part0", "h", "a", 512),
        ("block1.part1", "a", "h", 512),
    ]
    assert told["notes"][0].startswith("groups looked at: 1 set of 2 devices")
    lost = next(move for move in told["envelope"] if move["event"] == "lost")
    assert (lost["device"], lost["possible"], lost["stages"][0]["blocks"]) == ("a", True, [0, 6])


def test_head_takes_the_group_where_it_is_quicker_and_not_where_it_is_not_wanted(graph: Graph) -> None:
    auto, off = planned(graph), planned(graph, tensor_parallel="off")
    assert any(stage.is_group for stage in auto.plan.stages)
    assert not any(stage.is_group for stage in off.plan.stages)
    assert auto.plan.objective < off.plan.objective


def test_more_devices_than_heads_allow_are_refused_before_anything_is_compiled(graph: Graph) -> None:
    five = replace(CLUSTER, devices=(*CLUSTER.devices, *(device(n, 10**8, 1e9, 1e8) for n in "bcd")))
    with pytest.raises(CompileError) as caught:
        planned(graph, five, tensor_parallel="5")
    assert (caught.value.code, caught.value.exit_code) == ("P217", USAGE)
    assert "the blocks of this model cannot be cut for 5 devices" in caught.value.message
