"""The plan checker, given broken plans; and figures of a plan computed by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llcompile.ir.cluster import Cluster, Link
from llcompile.ir.errors import INTERNAL, CompileError
from llcompile.ir.plan import DeviceLoad, Plan, Stage
from llcompile.partition import Pin, plan, planner
from llcompile.partition.check import check_plan
from llcompile.partition.evaluate import evaluate, memory
from llcompile.partition.planner import device_loads
from llcompile.partition.transmissions import transmissions
from tests.unit.partition.cases import OPTIONS, chain, cost, device

# Three devices of 30 kB; ten blocks of 5 kB need all of them.
CLUSTER = Cluster("h", tuple(device(name, 31_000) for name in ("h", "a", "b", "spare")), Link(1e6, 1e-3), {})
COSTS = tuple(cost(b, 5000) for b in range(14))
FLOWS = chain(14)


@pytest.fixture(scope="module")
def good() -> Plan:
    return plan(COSTS, FLOWS, CLUSTER, OPTIONS)


def test_good_plan_has_no_fault(good: Plan) -> None:
    assert check_plan(good, COSTS, FLOWS, CLUSTER, OPTIONS) == []
    assert [stage.lead for stage in good.stages] == ["h", "a", "b", "h"]
    assert list(good.unused) == ["spare"]


def moved(stages: tuple[Stage, ...], number: int, **fields: Any) -> tuple[Stage, ...]:
    return (*stages[:number], replace(stages[number], **fields), *stages[number + 1 :])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda p: {"stages": p.stages[:-1]}, "the stages end at block"),
        (lambda p: {"stages": moved(p.stages, 1, start=p.stages[1].start + 1)}, "stage 1 begins at block"),
        (lambda p: {"stages": moved(p.stages, 1, stop=p.stages[1].start)}, "stage 1 is empty"),
        (lambda p: {"stages": moved(p.stages, 0, devices=("spare",))}, "not on the head h"),
        (lambda p: {"stages": moved(p.stages, 2, devices=("a",))}, "a has two stages in a row"),
        (lambda p: {"stages": moved(p.stages, 1, devices=("nobody",))}, "not on devices of the cluster"),
        (lambda p: {"ttft_s": p.ttft_s * 2}, "ttft_s is said to be"),
        (lambda p: {"tpot_s": p.tpot_s * 0.9}, "tpot_s is said to be"),
        (lambda p: {"objective": p.objective * 0.9}, "objective is said to be"),
        (lambda p: {"bound": p.objective * 1.1}, "is above the objective"),
        (lambda p: {"gap": 0.5}, "said to be optimal, with a gap of 0.5"),
        (lambda p: {"transmissions": p.transmissions[:-1]}, "the transmission map is not"),
        (lambda p: {"unused": {}}, "spare is not among the unused devices"),
        (lambda p: {"devices": {**p.devices, "a": DeviceLoad(1, 1, 1, 1, 1.0)}}, "a is said to hold"),
    ],
)
def test_checker_finds(good: Plan, change: Any, complaint: str) -> None:
    found = check_plan(replace(good, **change(good)), COSTS, FLOWS, CLUSTER, OPTIONS)
    assert any(complaint in fault for fault in found), found


def test_checker_finds_memory_and_wishes(good: Plan) -> None:
    small = replace(CLUSTER, devices=tuple(replace(d, memory_bytes=20_000) for d in CLUSTER.devices))
    assert any("it has 20000" in fault for fault in check_plan(good, COSTS, FLOWS, small, OPTIONS))
    wishes = replace(OPTIONS, use_all=True, pins=(Pin(4, 5, "spare"),))
    found = check_plan(good, COSTS, FLOWS, CLUSTER, wishes)
    assert "spare has no block, in spite of --use-all" in found
    assert any("in spite of --pin 4:5=spare" in fault for fault in found)


def test_planner_never_hands_out_a_plan_that_breaks_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planner that forgets a message and doubles a figure is told so, by name; nothing is compiled from it."""
    monkeypatch.setattr(planner, "transmissions", lambda *given: transmissions(*given)[1:])
    monkeypatch.setattr(
        planner, "device_loads", lambda *given: device_loads(*given) | {"a": DeviceLoad(1, 1, 1, 1, 1.0)}
    )
    with pytest.raises(CompileError) as caught:
        plan(COSTS, FLOWS, CLUSTER, OPTIONS)
    assert (caught.value.code, caught.value.exit_code) == ("P222", INTERNAL)
    assert "a is said to hold (1, 1, 1, 1), it holds" in caught.value.message
    assert "the transmission map is not the one of these stages" in caught.value.message


# --- figures by hand ----------------------------------------------------------------------------------------------


def test_figures_by_hand() -> None:
    """Two devices, four blocks. A block: 1000 bytes at 1e9 bytes/s = 1 us a token (2000 operations at 1e10 would
    be 0.2 us); a chunk: 32000 operations = 3.2 us. A hop: 1 ms + 64 bytes at 1e6 bytes/s = 64 us, a chunk 1024 us."""
    costs, flows = tuple(cost(b, 1000) for b in range(4)), chain(4)
    stages = tuple(Stage.on(name, *edge) for name, edge in (("h", (0, 1)), ("a", (1, 3)), ("h", (3, 4))))
    options = replace(OPTIONS, prompt_tokens=48, new_tokens=10)
    figures = evaluate(stages, costs, flows, CLUSTER, options)
    assert figures.tpot_s == pytest.approx(4e-6 + 2 * (1e-3 + 64e-6))
    # Three chunks: the links are the slowest, each way its own.
    assert figures.ttft_s == pytest.approx(4 * 3.2e-6 + 2 * (1e-3 + 1024e-6) + 2 * 1024e-6)
    assert figures.objective == pytest.approx(figures.ttft_s + 10 * figures.tpot_s)
    assert figures.compute_s == {"h": pytest.approx(2e-6), "a": pytest.approx(2e-6)}
    served = evaluate(stages, costs, flows, CLUSTER, replace(options, objective="throughput", sequences=100))
    assert served.period_s == pytest.approx(64e-6)
    few = evaluate(stages, costs, flows, CLUSTER, replace(options, objective="throughput", sequences=2))
    assert few.period_s == pytest.approx(figures.tpot_s / 2)


def test_memory_by_hand() -> None:
    """Weights and cache add up over the head's two stages; activations are the largest; two chunks are in flight."""
    costs = (cost(0, 1000, 10, 500), cost(1, 2000, 20, 900), cost(2, 3000, 30, 700))
    stages = tuple(Stage.on(name, *edge) for name, edge in (("h", (0, 1)), ("a", (1, 2)), ("h", (2, 3))))
    used = memory(stages, costs, chain(3), CLUSTER)
    assert (used["h"].weights, used["h"].cache) == (4000, 40)
    assert used["h"].peak == 4040 + 700 + 2 * 1024 + 1000
    assert used["a"].peak == 2020 + 900 + 2 * 1024 + 1000


def test_one_message_to_each_device_straight_from_the_producer() -> None:
    flows = (
        replace(chain(5)[0], consumers=(1, 2, 3, 4)),
        *chain(5)[1:],
    )
    stages = tuple(
        Stage.on(name, *edge) for name, edge in (("h", (0, 1)), ("a", (1, 2)), ("b", (2, 4)), ("h", (4, 5)))
    )
    found = [(t.tensor, t.kind, t.source, t.destination) for t in transmissions(stages, flows)]
    # x0 is used twice on b, and again on the head, where it was made.
    assert found == [
        ("x0", "sequential", "h", "a"),
        ("x0", "residual", "h", "b"),
        ("x1", "sequential", "a", "b"),
        ("x3", "sequential", "b", "h"),
    ]
