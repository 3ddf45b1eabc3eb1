"""Plans with groups: figures by hand and by a second evaluation, what travels, and faults that the checker names."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from llcompile.ir.cluster import Cluster, Link
from llcompile.ir.plan import Plan, Stage
from llcompile.ir.printer import print_planned
from llcompile.partition import envelope
from llcompile.partition.check import check_plan
from llcompile.partition.evaluate import evaluate, memory
from llcompile.partition.planner import device_loads
from llcompile.partition.problem import Problem
from llcompile.partition.transmissions import transmissions
from llrun.schema import AllReduceKind, PlanStatus
from tests.unit.partition.cases import OPTIONS, Case, chain, cost, device, random_case
from tests.unit.partition.cut import Slowly, linear

STAR, DIRECT, RING = AllReduceKind.STAR, AllReduceKind.DIRECT, AllReduceKind.RING
CLUSTER = Cluster("h", tuple(device(name) for name in ("h", "a", "b", "c")), Link(1e6, 1e-3), {})
COSTS = tuple(cost(b, 1000) for b in range(6))
FLOWS = chain(6)
PIECES = linear(COSTS)


def grouped(
    *devices: str, kind: AllReduceKind = DIRECT, root: int = 0, shares: tuple[float, ...] = ()
) -> tuple[Stage, ...]:
    """All blocks but the ends in one group."""
    even = (1 / len(devices),) * len(devices)
    return (Stage.on("h", 0, 1), Stage(devices, shares or even, 1, 5, 0, kind, root), Stage.on("h", 5, 6))


def test_figures_by_hand() -> None:
    """Four blocks of 1000 bytes at 1e9 bytes/s in two halves: 0.5 us a token for a shard; of two parts a tail reads 120
    bytes, 0.12 us; a direct sum takes 1 ms + 64 bytes at 1e6 bytes/s. Each of both members is sent the first tensor
    (64 us each, one latency), the lead alone sends on."""
    options = replace(OPTIONS, prompt_tokens=48, new_tokens=10)
    figures = evaluate(grouped("a", "b"), COSTS, FLOWS, CLUSTER, options, PIECES)
    inside, ends = 4 * (0.5e-6 + 1.064e-3 + 0.12e-6), 2e-6
    assert figures.tpot_s == pytest.approx(ends + inside + (1e-3 + 128e-6) + (1e-3 + 64e-6))
    # A chunk: 16 times the bytes; a shard computes 16000 operations at 1e10, a tail 1920 operations in 0.192 us, but
    # reads as many bytes in 1.92 us.
    chunk = 4 * (1.6e-6 + (1e-3 + 1024e-6) + 1.92e-6)
    filled = 2 * 3.2e-6 + chunk + (1e-3 + 2048e-6) + (1e-3 + 1024e-6)
    assert figures.chunk_s == pytest.approx(filled)
    assert figures.slowest_chunk_s == pytest.approx(chunk)
    assert figures.ttft_s == pytest.approx(filled + 2 * chunk)
    assert figures.compute_s == {
        "h": pytest.approx(2e-6),
        "a": pytest.approx(2.48e-6),
        "b": pytest.approx(2.48e-6),
    }


def test_memory_by_hand() -> None:
    """A quarter of 4000 bytes and of the activations, four tails; two chunks in flight, and of the sum three chunks'
    partials from others and one of its own."""
    shares = (0.25, 0.25, 0.25, 0.25)
    used = memory(grouped("h", "a", "b", "c", shares=shares), COSTS, FLOWS, CLUSTER, PIECES)
    assert used["a"].weights == 1000 + 4 * 40
    assert used["a"].peak == 1160 + 40 + 2 * 1024 + 4 * 1024 + 1000
    assert used["h"].peak == 1160 + 2000 + 100 + 2 * 1024 + 4 * 1024 + 1000


@pytest.mark.parametrize(
    ("kind", "root", "expected", "last"),
    [
        (
            DIRECT,
            0,
            ["part0 a b", "part0 a c", "part1 b a", "part1 b c", "part2 c a", "part2 c b"],
            ["part1 b a", "part2 c a"],
        ),
        (
            STAR,
            1,
            ["part0 a b", "part2 c b", "sum0 b a", "sum0 b c"],
            ["part0 a b", "part2 c b", "sum0 b a"],
        ),
        (
            RING,
            0,
            ["part0 a b", "sum0 b c", "sum1 c a", "sum1 a b"],
            ["part0 a b", "sum0 b c", "sum1 c a"],
        ),
    ],
)
def test_sums_are_in_the_map(kind: AllReduceKind, root: int, expected: list[str], last: list[str]) -> None:
    """Of the last block only the lead needs the sum, as no other member uses what comes of it."""
    sent = transmissions(grouped("a", "b", "c", kind=kind, root=root), FLOWS, PIECES)
    told = [f"{t.tensor} {t.source} {t.destination}" for t in sent if t.kind == "sum"]
    for block in (1, 2, 3):
        assert [t.split(".")[1] for t in told if t.startswith(f"block{block}.")] == expected
    assert [t.split(".")[1] for t in told if t.startswith("block4.")] == last
    assert {t.bytes for t in sent if t.kind == "sum"} == {64}
    assert [(t.tensor, t.source, t.destination) for t in sent if t.kind != "sum"] == [
        ("x0", "h", "a"),
        ("x0", "h", "b"),
        ("x0", "h", "c"),
        ("x4", "a", "h"),
    ]


def test_member_that_has_a_tensor_is_not_sent_it() -> None:
    """The head in a group is sent neither its own embedding nor what the group made; a skipping tensor goes to the
    members that lack it."""
    flows = (replace(FLOWS[0], consumers=(1, 5)), *FLOWS[1:])
    sent = transmissions(grouped("h", "a"), flows, PIECES)
    assert [(t.tensor, t.source, t.destination) for t in sent if t.kind != "sum"] == [("x0", "h", "a")]
    stages = (
        Stage.on("h", 0, 1),
        Stage.on("c", 1, 3),
        Stage(("a", "b"), (0.5, 0.5), 3, 5, 0, STAR),
        Stage.on("h", 5, 6),
    )
    sent = transmissions(stages, (replace(FLOWS[0], consumers=(1, 3)), *FLOWS[1:]), PIECES)
    assert [(t.tensor, str(t.kind), t.source, t.destination) for t in sent if t.kind != "sum"] == [
        ("x0", "sequential", "h", "c"),
        ("x0", "residual", "h", "a"),
        ("x0", "residual", "h", "b"),
        ("x2", "sequential", "c", "a"),
        ("x2", "sequential", "c", "b"),
        ("x4", "sequential", "a", "h"),
    ]


def random_plans(seed: int) -> Iterator[tuple[Case, tuple[Stage, ...]]]:
    """A random case, and a few plans of it with a group."""
    case, r = random_case(seed), random.Random(seed)
    names = [d.name for d in case.cluster.devices]
    head, blocks = case.cluster.head, len(case.costs)
    if len(names) < 3 or blocks < 4:
        return
    for kind in AllReduceKind:
        members = r.sample(names, r.randint(2, len(names)))
        weights = [r.uniform(0.2, 1.0) for _ in members]
        shares = tuple(w / sum(weights) for w in weights)
        start, stop = sorted(r.sample(range(1, blocks), 2))
        group = Stage(tuple(members), shares, start, stop, 0, kind, r.randrange(len(members)))
        others = [name for name in names if name not in members and name != head]
        before = (
            [Stage.on(head, 0, 1), Stage.on(others[0], 1, start)]
            if others and start > 1
            else [Stage.on(head, 0, start)]
        )
        yield case, (*before, group, Stage.on(head, stop, blocks))


def test_figures_equal_those_of_a_second_evaluation() -> None:
    looked = 0
    for seed in range(200):
        for case, stages in random_plans(seed):
            pieces = linear(case.costs)
            given = (stages, case.costs, case.flows, case.cluster)
            slow = Slowly(*given, case.options, pieces)
            figures = evaluate(*given, case.options, pieces)
            assert figures.objective == pytest.approx(slow.objective()), seed
            assert figures.tpot_s == pytest.approx(slow.whole(True)), seed
            assert figures.slowest_token_s == pytest.approx(slow.slowest(True)), seed
            used = memory(*given, pieces)
            assert {name: each.peak for name, each in used.items()} == {
                name: slow.peak(name) for name in used
            }
            looked += 1
    assert looked > 150


# --- the checker ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good() -> Plan:
    return described(grouped("a", "b", kind=STAR, root=1, shares=(0.75, 0.25)))


def described(stages: tuple[Stage, ...]) -> Plan:
    """The plan that `stages` are, told truly."""
    figures = evaluate(stages, COSTS, FLOWS, CLUSTER, OPTIONS, PIECES)
    used = {name for stage in stages for name in stage.devices}
    return Plan(
        PlanStatus.FEASIBLE, figures.objective, 0.0, 1.0, 0.0, 1, figures.ttft_s, figures.tpot_s, figures.chunk_s,
        figures.slowest_chunk_s, OPTIONS.precision, OPTIONS.shapes, OPTIONS.prompt_tokens, OPTIONS.new_tokens,
        OPTIONS.sequences, stages, device_loads(stages, Problem(COSTS, FLOWS, CLUSTER, OPTIONS, PIECES), figures),
        {d.name: "-" for d in CLUSTER.devices if d.name not in used}, transmissions(stages, FLOWS, PIECES), "",
    )  # fmt: skip


def faults(plan: Plan, cluster: Cluster = CLUSTER) -> list[str]:
    return check_plan(plan, COSTS, FLOWS, cluster, OPTIONS, PIECES)


def changed(plan: Plan, **fields: Any) -> Plan:
    return replace(plan, stages=(plan.stages[0], replace(plan.stages[1], **fields), plan.stages[2]))


def test_good_plan_has_no_fault(good: Plan) -> None:
    assert faults(good) == []
    assert good.held == {"h": (0, 5), "a": (), "b": ()}
    assert "  stage 1:5 on a 0.75, b 0.25 star root 1\n" in print_planned(good, COSTS)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"shares": (0.75, 0.5)}, "stage 1 has the shares (0.75, 0.5) for 2 devices"),
        ({"shares": (1.0,)}, "stage 1 has the shares (1.0,) for 2 devices"),
        ({"shares": (1.5, -0.5)}, "stage 1 has the shares"),
        ({"devices": ("a", "a")}, "stage 1 has a device twice: a, a"),
        ({"devices": ("a", "nobody")}, "not on devices of the cluster"),
        ({"all_reduce": None}, "stage 1 sums as None at rank 1"),
        ({"root": 2}, "stage 1 sums as star at rank 2"),
        ({"all_reduce": DIRECT}, "the transmission map is not the one of these stages"),
        ({"root": 0}, "the transmission map is not the one of these stages"),
        ({"shares": (0.5, 0.5)}, "objective is said to be"),
        ({"devices": ("a",)}, "stage 1 is on one device, and is said to be shared"),
    ],
)
def test_checker_finds(good: Plan, fields: dict[str, Any], complaint: str) -> None:
    assert any(complaint in fault for fault in faults(changed(good, **fields)))


def test_checker_finds_what_cannot_be_cut_and_ends_in_groups(good: Plan) -> None:
    uncut = check_plan(good, COSTS, FLOWS, CLUSTER, OPTIONS, linear(COSTS, uncut=(2,)))
    assert uncut == ["block 2 of stage 1 cannot be cut so"]
    assert check_plan(good, COSTS, FLOWS, CLUSTER, OPTIONS)[0] == "block 1 of stage 1 cannot be cut so"
    all_of_it = (replace(good.stages[1], start=0, stop=6),)
    assert "stage 0, a group, has the first or the last block" in faults(replace(good, stages=all_of_it))


def test_checker_finds_members_with_other_stages(good: Plan) -> None:
    stages = (Stage.on("h", 0, 1), Stage.on("a", 1, 2), replace(good.stages[1], start=2), good.stages[2])
    assert "a has 1 stage beside its group" in faults(replace(good, stages=stages))
    twice = (
        Stage.on("h", 0, 1),
        replace(good.stages[1], stop=3),
        Stage(("b", "c"), (0.5, 0.5), 3, 5, 0, STAR),
        good.stages[2],
    )
    assert "b is in 2 groups" in faults(replace(good, stages=twice))


def test_checker_finds_members_without_room(good: Plan) -> None:
    tight = good.devices["a"].peak_bytes - 1
    devices = tuple(replace(d, memory_bytes=tight) if d.name == "a" else d for d in CLUSTER.devices)
    assert f"a needs {tight + 1} bytes, it has {tight}" in faults(good, replace(CLUSTER, devices=devices))
    disk = (6 << 20) + 6 * 16384
    devices = tuple(replace(d, disk_bytes=disk) if d.name == "b" else d for d in CLUSTER.devices)
    need = 8 * 16384 + 1000 + 4 * 40
    assert f"b needs {need} bytes of its disk for blocks, disk_bytes leaves 0" in faults(
        good, replace(CLUSTER, devices=devices)
    )


def test_envelope_has_the_pieces_by_their_ids(good: Plan) -> None:
    found = envelope({**good.held, "b": (2,)}, COSTS, CLUSTER, good.stages, PIECES)
    assert [block.id for block in found.devices["a"].blocks] == [8, 9, 10, 11, 12, 13, 14, 15]
    assert [block.id for block in found.devices["b"].blocks] == [2, 8, 9, 10, 11, 12, 13, 14, 15]
    assert [block.weights_bytes for block in found.devices["a"].blocks][:2] == [750, 40]
    assert found.devices["a"].blocks[0].decode_s == pytest.approx(0.75e-6)
