"""--wire: what a format costs, and which one auto takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cases import OPTIONS, chain, cost, device

from llcompile.cost import message
from llcompile.ir.cluster import Cluster, Link
from llcompile.ir.errors import CompileError
from llcompile.ir.graph import TensorSpec
from llcompile.ir.plan import Flow, Plan
from llcompile.partition import plan, plan_wire, settled, widened
from llcompile.partition.check import check_plan
from llcompile.partition.evaluate import in_flight_bytes
from llrun.programs.formats import row_bytes
from llrun.schema import WireFormat

FEATURES, CHUNK = 1024, 16
COSTS = tuple(cost(block, 10**6) for block in range(10))
HIDDEN = TensorSpec("h", "float32", (1, "n", FEATURES))


def flows(wire: WireFormat) -> tuple[Flow, ...]:
    sent = message(HIDDEN, CHUNK, wire)
    sizes = sent.row_bytes, sent.portion_bytes, sent.wire, sent.held_bytes
    return tuple(Flow(flow.tensor, flow.producer, flow.consumers, *sizes) for flow in chain(10))


def cluster(link: Link, memory: int = 6 * 10**6) -> Cluster:
    """Neither holds all ten megabytes."""
    return Cluster("h", (device("h", memory), device("a", memory)), link, {})


def made(wish: str, link: Link, memory: int = 6 * 10**6) -> Plan:
    def make(wire: WireFormat, limit_s: float) -> Plan:
        asked = replace(OPTIONS, precision=replace(OPTIONS.precision, wire=wire), time_limit_s=limit_s)
        return plan(COSTS, flows(wire), cluster(link, memory), asked)

    return plan_wire(wish, 2, 20.0, make)


@pytest.mark.parametrize(
    ("bytes_per_s", "taken"), [(1e10, "f32"), (3e7, "f16"), (1e6, "q8")], ids=["fast", "middling", "slow"]
)
def test_auto_takes_fewer_bytes_where_they_save_time(bytes_per_s: float, taken: str) -> None:
    link = Link(bytes_per_s, 1e-4)
    found = made("auto", link)
    assert found.precision.wire == taken
    assert {sent.wire for sent in found.transmissions} == {taken}
    assert {sent.bytes for sent in found.transmissions} == {row_bytes(WireFormat(taken), FEATURES)}
    assert found.wires == ({} if taken == "f32" else {sent.tensor: taken for sent in found.transmissions})


@pytest.mark.parametrize("wire", list(WireFormat))
def test_a_format_that_is_asked_for_is_taken_and_priced(wire: WireFormat) -> None:
    link = Link(1e6, 1e-4)
    found = made(wire, link)
    assert {sent.wire for sent in found.transmissions} == {wire}
    computing = sum(load.compute_s for load in found.devices.values())
    hops = len(found.transmissions)
    assert found.tpot_s == pytest.approx(computing + hops * (1e-4 + row_bytes(wire, FEATURES) / 1e6))


def test_buffers_hold_what_is_computed_with_and_what_travels() -> None:
    exact = in_flight_bytes(flows(WireFormat.F32))
    assert exact == 2 * CHUNK * 4 * FEATURES
    for wire in (WireFormat.F16, WireFormat.Q8, WireFormat.Q4):
        assert in_flight_bytes(flows(wire)) == exact + 2 * CHUNK * row_bytes(wire, FEATURES)
        load = made(wire, Link(1e6, 1e-4)).devices["a"]
        base = made("f32", Link(1e6, 1e-4)).devices["a"]
        assert (
            load.peak_bytes - load.weights_bytes
            == base.peak_bytes - base.weights_bytes + 2 * CHUNK * row_bytes(wire, FEATURES)
        )


def test_what_cannot_be_coded_travels_as_it_is() -> None:
    numbers = message(TensorSpec("ids", "int64", (1, "n")), CHUNK, WireFormat.Q4)
    assert (numbers.wire, numbers.row_bytes, numbers.held_bytes) == (WireFormat.F32, 8, 8 * CHUNK)
    heads = message(TensorSpec("k", "float32", (1, 4, "n", 64)), CHUNK, WireFormat.Q8)
    assert (heads.wire, heads.row_bytes) == (WireFormat.F32, 4 * 4 * 64)


def plans(**seconds: tuple[float, float]) -> Plan:
    """What auto makes of plans with these TTFT and TPOT; a format that is not named has none."""
    base = made("f32", Link(1e6, 1e-4))

    def make(wire: WireFormat, _: float) -> Plan:
        if wire not in seconds:
            raise CompileError("P201", "no feasible plan", 3)
        ttft, tpot = seconds[wire]
        precision = replace(base.precision, wire=wire)
        return replace(base, precision=precision, ttft_s=ttft, tpot_s=tpot, objective=ttft + 10 * tpot)

    return plan_wire("auto", 2, 10.0, make)


@pytest.mark.parametrize(
    ("seconds", "taken"),
    [
        ({"f32": (1.0, 0.1), "f16": (0.995, 0.1), "q8": (0.992, 0.1)}, "f32"),
        ({"f32": (1.0, 0.1), "f16": (0.98, 0.1), "q8": (0.95, 0.1)}, "f16"),
        ({"f32": (1.0, 0.1), "f16": (0.98, 0.1), "q8": (0.92, 0.1)}, "q8"),
        ({"f32": (1.0, 0.1), "f16": (1.0, 0.098), "q8": (1.0, 0.092)}, "q8"),
        ({"f32": (1.0, 0.1), "f16": (0.95, 0.09), "q8": (0.85, 0.105)}, "f16"),
        ({"f32": (1.0, 0.1), "q8": (0.9, 0.1)}, "q8"),
        ({"f32": (1.0, 0.1), "f16": (0.5, 0.1)}, "f32"),
        ({"f32": (1.0, 0.1), "f16": (0.9, 0.1), "q8": (0.89, 0.1), "q4": (0.1, 0.01)}, "f16"),
    ],
)
def test_auto_takes_the_widest_that_costs_little(seconds, taken) -> None:
    assert plans(**seconds).precision.wire == taken


def test_what_no_format_can_have_is_told() -> None:
    with pytest.raises(CompileError, match="no feasible plan"):
        made("auto", Link(1e6, 1e-4), memory=10**6)


def test_tensors_that_the_plan_does_not_send_stay_as_they_are() -> None:
    found = made("q8", Link(1e6, 1e-4))
    left = settled(flows(WireFormat.Q8), flows(WireFormat.F32), found.wires)
    assert {flow.tensor: flow.wire for flow in left} == {
        flow.tensor: found.wires.get(flow.tensor, WireFormat.F32) for flow in flows(WireFormat.Q8)
    }
    assert {flow.wire for flow in left} == {WireFormat.F32, WireFormat.Q8}


def on_two_links(slow: Link, memory: int, wire: str = "q8") -> tuple[Plan, Plan]:
    """The plan of three devices, of which a alone is behind a slow link, in one format and with each link's own."""
    devices = tuple(device(name, memory) for name in ("h", "b", "a"))
    links = {pair: slow for other in ("h", "b") for pair in (("a", other), (other, "a"))}
    where = Cluster("h", devices, Link(1e10, 1e-4), links)
    precision = replace(OPTIONS.precision, wire=WireFormat(wire))
    options = replace(OPTIONS, precision=precision, use_all=True)
    uniform = plan(COSTS, flows(WireFormat(wire)), where, options)
    both = flows(WireFormat(wire)), flows(WireFormat.F32)
    mixed = widened(uniform, COSTS, both, where, options)
    assert check_plan(mixed, COSTS, settled(*both, mixed.wires), where, options) == []
    return uniform, mixed


def test_each_link_has_the_format_that_saves_time_there() -> None:
    uniform, mixed = on_two_links(Link(1e6, 1e-4), 6 * 10**6)
    assert mixed.stages == uniform.stages
    assert {sent.wire for sent in uniform.transmissions} == {"q8"}
    for sent in mixed.transmissions:
        assert sent.wire == ("q8" if "a" in (sent.source, sent.destination) else "f32")
    assert len({sent.wire for sent in mixed.transmissions}) == 2
    assert uniform.tpot_s <= mixed.tpot_s <= uniform.tpot_s * 1.05
    assert (uniform.status, mixed.status) == ("optimal", "optimal")
    assert mixed.gap <= OPTIONS.gap
    assert mixed.bound <= mixed.objective
    assert mixed.gap == pytest.approx(1 - mixed.bound / mixed.objective)


def test_a_format_that_saves_alike_everywhere_stays_everywhere() -> None:
    uniform, mixed = on_two_links(Link(1e10, 1e-4), 6 * 10**6)
    assert {sent.wire for sent in mixed.transmissions} == {"f32"}  # none saves anything
    devices = tuple(device(name, 6 * 10**6) for name in ("h", "a"))
    slow = Cluster("h", devices, Link(1e6, 1e-4), {})
    both = flows(WireFormat.Q8), flows(WireFormat.F32)
    options = replace(OPTIONS, precision=replace(OPTIONS.precision, wire=WireFormat.Q8), use_all=True)
    uniform = plan(COSTS, both[0], slow, options)
    assert widened(uniform, COSTS, both, slow, options) is uniform
