"""From a model to a plan with windows: the output head in pieces, on the head, in the bundle's records."""

from __future__ import annotations

from pathlib import Path

import pytest

from llcompile.bundle import graph_record, plan_record
from llcompile.bundle.slices import max_payload_bytes
from llcompile.graph import build_graph
from llcompile.ir.cluster import Cluster, Link
from llcompile.ir.graph import Graph
from llcompile.partition import device_programs
from llcompile.pipeline import BuildOptions, Planned, plan_graph
from llrun.schema import Load, Send
from tests.unit.graph.test_output import VOCAB, capped, model_with
from tests.unit.partition.cases import device

PLENTY = 10**9
CLUSTER = Cluster("h", tuple(device(name, PLENTY) for name in ("h", "a", "b")), Link(1e8, 1e-6), {})
MODEL = model_with(capped)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return build_graph(MODEL)


def planned(graph: Graph, **wishes: object) -> Planned:
    options = BuildOptions("made-up", Path("devices.json"), quant="f32", context=64, use_all=True, **wishes)  # type: ignore[arg-type]
    return plan_graph(MODEL, graph, CLUSTER, options)


@pytest.mark.parametrize("window", ["auto", "off"])
def test_without_windows_the_output_head_is_one_block(graph: Graph, window: str) -> None:
    made = planned(graph, window=window)
    assert (made.graph, made.model) == (graph, MODEL)


@pytest.mark.parametrize("pins", [(), ("5:6=h",)])
def test_with_windows_its_pieces_are_the_heads_and_travel_nowhere(
    graph: Graph, pins: tuple[str, ...]
) -> None:
    made = planned(graph, window="2", spare="all", pins=pins)
    cut, plan = made.graph, made.plan
    assert (cut.output_start, len(cut.blocks), plan.stages[-1].stop) == (5, 9, 9)
    assert {b for name, blocks in plan.held.items() if name != "h" for b in blocks} <= set(range(1, 5))
    assert not any(sent.tensor.startswith("logits") for sent in plan.transmissions)
    record, described = plan_record(plan, cut, made.costs), graph_record(cut, plan.wires)
    assert {load.rounds for load in record.devices.values()} == {1}
    programs = device_programs(described, record.stages, record.transmissions, "h")
    loaded = {each.block for name in "ab" for each in programs[name].instructions if isinstance(each, Load)}
    assert loaded <= set(range(1, 5))
    names = {tensor.id: tensor.name for tensor in described.tensors}
    sent = {names[each.tensor] for each in programs["h"].instructions if isinstance(each, Send)}
    assert sent
    assert not any(name.startswith("logits") for name in sent)


def test_no_message_is_as_large_as_a_piece_of_the_logits(graph: Graph) -> None:
    cut = planned(graph, window="2").graph
    assert max_payload_bytes(graph_record(cut), 16, cut.output_blocks) == max_payload_bytes(
        graph_record(graph), 16
    )
    assert max_payload_bytes(graph_record(cut), 16) > 16 * 4 * VOCAB // 4
