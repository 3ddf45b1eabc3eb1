"""The map that a device derives from its slice's graph is the one that the planner recorded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llcompile.bundle import graph_record
from llcompile.bundle.records import stage_records, transmission_records
from llcompile.cost import flows
from llcompile.ir.cluster import Cluster, Link
from llcompile.ir.graph import TensorSpec
from llcompile.partition.brute_force import candidates
from llcompile.partition.transmissions import transmissions
from llrun import schema
from llrun.programs.transmissions import crossings
from llrun.programs.transmissions import transmissions as from_graph
from llrun.schema import Rows, TransmissionKind
from tests.unit.partition.cases import OPTIONS, device
from tests.unit.partition.graphs import layered

CLUSTER = Cluster("h", tuple(device(name) for name in ("h", "a", "b", "c")), Link(1e6, 1e-3), {})


@pytest.mark.parametrize("parallel", [False, True])
def test_every_cut_has_the_planners_map(parallel: bool) -> None:
    graph = layered(3, parallel)
    record, planned, kinds = graph_record(graph), flows(graph, 16), set()
    for stages in candidates(len(graph.blocks), CLUSTER, OPTIONS):
        due = transmission_records(transmissions(stages, planned))
        assert from_graph(record, stage_records(stages)) == due, stages
        kinds |= {sent.kind for sent in due}
    both = {TransmissionKind.SEQUENTIAL, TransmissionKind.RESIDUAL}
    assert kinds == (both if parallel else {TransmissionKind.SEQUENTIAL})


def test_crossings_say_who_uses_what_and_how_much() -> None:
    """Neither ids, tables nor logits; a tensor that only last-row blocks use is one of the newest row."""
    found = crossings(graph_record(layered(2, parallel=True)))
    assert [(each.tensor, each.producer, each.consumers, each.rows) for each in found] == [
        ("x0", 0, (1, 2), Rows.ALL),
        ("a0", 1, (2,), Rows.ALL),
        ("x1", 2, (3, 4), Rows.ALL),
        ("a1", 3, (4,), Rows.LAST),
        ("x2", 4, (5,), Rows.LAST),
    ]
    assert {each.row_bytes for each in found} == {32}


def test_bytes_follow_dtype_and_shape() -> None:
    graph = layered(1)
    half = TensorSpec("y", "float16", (1, "n", 3, 8))
    t0 = replace(graph.templates["t0"], outputs=(half,))
    record = graph_record(replace(graph, templates={**graph.templates, "t0": t0}))
    stages = (
        schema.StageRecord.on("h", 0, 1),
        schema.StageRecord.on("a", 1, 2),
        schema.StageRecord.on("h", 2, 4),
    )
    assert [(each.tensor, each.bytes) for each in from_graph(record, stages)] == [("x0", 48), ("a0", 32)]
