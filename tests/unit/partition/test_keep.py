"""--keep: the first and last layers stay on the head, in the plan, in what others hold, and in every move."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llcompile.bundle import graph_record
from llcompile.ir.cluster import Cluster, Link
from llcompile.ir.errors import INFEASIBLE, USAGE, CompileError
from llcompile.ir.plan import Plan
from llcompile.partition import Pin, kept_pins, plan, with_spares
from llcompile.partition.brute_force import brute_force
from llcompile.partition.keeping import layer_starts
from llcompile.partition.options import check_pins
from llcompile.partition.spares import Spare
from llcompile.pipeline import BuildOptions, plan_graph
from tests.unit.partition.cases import OPTIONS, chain, cost, device
from tests.unit.partition.graphs import layered
from tests.unit.partition.test_requests import model

# Embedding, six layers of an attention block with a cache and an MLP block, output head.
COSTS = tuple(cost(b, 5000, 500 if b % 2 and b < 13 else 0) for b in range(14))
FLOWS = chain(14)
# Workers that are faster than the head: without --keep they get all that they may have.
CLUSTER = Cluster(
    "h",
    (device("h", 10**6, 1e9, 1e8), device("a", 10**6, 1e11, 1e10), device("b", 10**6, 1e11, 1e10)),
    Link(1e8, 1e-6),
    {},
)


def kept(keep: int, **options: Any) -> Plan:
    wishes = replace(OPTIONS, pins=kept_pins(keep, COSTS, "h"), **options)
    return plan(COSTS, FLOWS, CLUSTER, wishes)


def on_workers(made: Plan) -> list[int]:
    return [b for stage in made.stages if stage.lead != "h" for b in stage.blocks]


def test_layer_begins_at_a_cache_and_ends_before_the_next() -> None:
    assert layer_starts(COSTS) == (1, 3, 5, 7, 9, 11)
    assert kept_pins(2, COSTS, "h") == (Pin(0, 5, "h", 2), Pin(9, 14, "h", 2))
    assert kept_pins(0, COSTS, "h") == ()


@pytest.mark.parametrize(
    ("keep", "expected"), [(0, [*range(1, 13)]), (1, [*range(3, 11)]), (2, [*range(5, 9)])]
)
def test_workers_get_the_layers_between_alone(keep: int, expected: list[int]) -> None:
    assert on_workers(kept(keep)) == expected


@pytest.mark.parametrize("keep", [1, 2])
def test_plan_is_the_best_of_those_that_keep(keep: int) -> None:
    wishes = replace(OPTIONS, pins=kept_pins(keep, COSTS, "h"))
    best = brute_force(COSTS, FLOWS, CLUSTER, wishes)
    assert best is not None
    assert kept(keep).objective == pytest.approx(best[0])


@pytest.mark.parametrize("spare", list(Spare))
def test_nobody_else_ever_holds_what_is_kept(spare: Spare) -> None:
    """Neither as a spare, nor after a loss, nor when the head is slow: then the workers take less than they could."""
    wishes = replace(OPTIONS, pins=kept_pins(2, COSTS, "h"))
    cluster = replace(
        CLUSTER, devices=(*CLUSTER.devices, replace(device("s", 10**6, 1e12, 1e11), standby=True))
    )
    made = plan(COSTS, FLOWS, cluster, wishes)
    made = with_spares(made, COSTS, FLOWS, cluster, wishes, graph_record(layered(6)), spare)
    others = {b for name, blocks in made.held.items() if name != "h" for b in blocks}
    assert others == set(range(5, 9))
    assert {
        b for move in made.moves for stage in move.stages if stage.lead != "h" for b in stage.blocks
    } <= others


def test_without_it_others_hold_more() -> None:
    made = plan(COSTS, FLOWS, CLUSTER, OPTIONS)
    made = with_spares(made, COSTS, FLOWS, CLUSTER, OPTIONS, graph_record(layered(6)), Spare.ALL)
    assert set(range(1, 13)) == {b for name, blocks in made.held.items() if name != "h" for b in blocks}


@pytest.mark.parametrize(("keep", "most"), [(3, "Use --keep 2 at most"), (9, "Use --keep 2 at most")])
def test_nothing_left_is_refused(keep: int, most: str) -> None:
    with pytest.raises(CompileError) as caught:
        kept_pins(keep, COSTS, "h")
    assert (caught.value.code, caught.value.exit_code) == ("P216", USAGE)
    assert caught.value.message.startswith(f"--keep {keep}: the model has 6 layers")
    assert most in caught.value.message


def test_pin_of_a_kept_block_to_a_worker_is_refused() -> None:
    with pytest.raises(CompileError) as caught:
        check_pins((Pin(4, 6, "a"), *kept_pins(2, COSTS, "h")), CLUSTER, len(COSTS))
    assert (caught.value.code, caught.value.exit_code) == ("P213", USAGE)
    assert caught.value.message.startswith("--pin 4:6=a and --keep 2: both claim block 4, for a and h")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"memory_bytes": 50_000},
            "blocks 0 to 4 and 9 to 13 on the head, which need 51 KiB; h has 46 KiB free",
        ),
        (
            {"disk_bytes": (6 << 20) + 14 * 16384 + 100_000},
            "whose files have 209 KiB; disk_bytes leaves h 98 KiB",
        ),
    ],
)
def test_head_that_cannot_keep_them_is_told_how_much_it_lacks(change: dict[str, int], words: str) -> None:
    small = replace(CLUSTER, devices=(replace(CLUSTER.devices[0], **change), *CLUSTER.devices[1:]))
    with pytest.raises(CompileError) as caught:
        plan(COSTS, FLOWS, small, replace(OPTIONS, pins=kept_pins(2, COSTS, "h")))
    assert (caught.value.code, caught.value.exit_code) == ("P201", INFEASIBLE)
    assert words in caught.value.message
    assert "Keep fewer layers, or" in caught.value.message


def test_option_reaches_the_plan() -> None:
    options = BuildOptions("made-up", Path("devices.json"), keep=1, use_all=True, tensor_parallel="off")
    made = plan_graph(model(4096), layered(3), replace(CLUSTER, devices=CLUSTER.devices[:2]), options).plan
    assert on_workers(made) == [3, 4]
