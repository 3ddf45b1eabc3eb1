"""Plans for devices that run more blocks than they hold."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from llcompile.bundle import graph_record
from llcompile.ir.cluster import Cluster, Link
from llcompile.ir.errors import CompileError
from llcompile.ir.plan import BlockCost, Plan, Stage
from llcompile.partition import envelope, parse_window, plan_with_windows, with_spares
from llcompile.partition.check import check_plan
from llcompile.partition.evaluate import decode_seconds, evaluate, memory
from llcompile.partition.options import Pin
from llcompile.partition.spares import Spare
from llrun.programs.ring import weights_bytes
from tests.unit.partition.cases import OPTIONS, chain, cost, device
from tests.unit.partition.cut import linear
from tests.unit.partition.graphs import layered, with_pieces

PAGE = 4096
BIG, SMALL = 8 * PAGE, 2 * PAGE
COSTS = (cost(0, PAGE), *(cost(b, BIG if b % 2 else SMALL, 100) for b in range(1, 11)), cost(11, PAGE))
FLOWS = chain(12)
BUFFERS = 2 * 64 * 16
BESIDE = 1000 + BUFFERS + 100  # runtime, messages, activations


def cluster(head: int, *workers: int, disk: float = 1e8) -> Cluster:
    devices = [device("h", head), *(device(f"w{i}", memory) for i, memory in enumerate(workers))]
    slow = tuple(replace(d, disk_bytes_per_s=disk) for d in devices)
    return Cluster("h", slow, Link(1e8, 1e-6), {})


def planned(
    where: Cluster, window: int | None, costs: tuple[BlockCost, ...] = COSTS, **wishes: object
) -> Plan:
    options = replace(OPTIONS, **wishes)
    made = plan_with_windows(costs, FLOWS, where, options, window)
    assert check_plan(made, costs, FLOWS, where, options) == []
    return made


ENDS = 2 * PAGE + BESIDE
PAIR = BIG + SMALL


def test_no_window_where_the_model_fits() -> None:
    made = planned(cluster(ENDS, 10**6), None)
    assert [stage.window for stage in made.stages] == [0, 0, 0]
    assert made == replace(planned(cluster(ENDS, 10**6), 0), solve_s=made.solve_s)


def test_what_does_not_fit_streams_and_the_window_is_as_wide_as_memory_allows() -> None:
    memory_bytes = BESIDE + 10 * 100 + 2 * PAIR
    made = planned(cluster(ENDS, memory_bytes), None)
    assert [(s.devices, s.start, s.stop) for s in made.stages] == [
        (("h",), 0, 1),
        (("w0",), 1, 11),
        (("h",), 11, 12),
    ]
    width = made.stages[1].window
    assert 2 <= width < 10
    assert made.devices["w0"].peak_bytes <= memory_bytes
    wider = (made.stages[0], replace(made.stages[1], window=width + 1), made.stages[2])
    assert memory(wider, COSTS, FLOWS, cluster(ENDS, memory_bytes))["w0"].peak > memory_bytes
    with pytest.raises(CompileError, match="no feasible plan") as caught:
        planned(cluster(ENDS, memory_bytes), 0)
    assert caught.value.code == "P201"


def test_a_window_of_two_is_a_large_and_a_small_block() -> None:
    made = planned(cluster(ENDS, 10**6), 2)
    assert [stage.window for stage in made.stages] == [0, 2, 0]
    assert made.devices["w0"].weights_bytes == PAIR
    assert made.devices["w0"].peak_bytes == PAIR + 1000 + BESIDE
    assert planned(cluster(ENDS, PAIR + 1000 + BESIDE), 2, use_all=True).stages[1].window == 2


def test_ends_of_the_model_never_stream() -> None:
    made = planned(cluster(10**6), 3)
    (stage,) = made.stages
    assert stage.window == 3
    assert (
        made.devices["h"].weights_bytes == 2 * PAGE + 2 * PAIR
    )  # of three the ring has places for two of each
    described = envelope({"h": range(12)}, COSTS, cluster(10**6), made.stages).devices["h"]
    assert (described.streamed, described.ring) == (tuple(range(1, 11)), 3)
    assert weights_bytes(described, range(12)) == made.devices["h"].weights_bytes


def test_a_block_that_streams_takes_as_long_as_it_takes_to_read() -> None:
    where, stages = cluster(10**6, disk=1e7), (Stage.on("h", 0, 12),)
    whole = evaluate(stages, COSTS, FLOWS, where, OPTIONS)
    wide = evaluate((replace(stages[0], window=5),), COSTS, FLOWS, where, OPTIONS)
    narrow = evaluate((replace(stages[0], window=2),), COSTS, FLOWS, where, OPTIONS)
    middle = COSTS[1:-1]
    read_s = sum(each.weights_bytes for each in middle) / 1e7
    assert whole.tpot_s < read_s
    assert narrow.tpot_s == pytest.approx(read_s)  # the ends are computed meanwhile
    assert whole.tpot_s < wide.tpot_s < narrow.tpot_s
    computing = sum(decode_seconds(each, where.devices[0]) for each in COSTS)
    assert narrow.compute_s == whole.compute_s == {"h": pytest.approx(computing)}
    fast = evaluate((replace(stages[0], window=2),), COSTS, FLOWS, cluster(10**6, disk=1e12), OPTIONS)
    assert fast.tpot_s == pytest.approx(whole.tpot_s)


LONG = (cost(0, PAGE), *(cost(b, BIG, 100) for b in range(1, 25)), cost(25, PAGE))


def test_what_a_device_reads_while_others_have_their_turn_costs_nothing() -> None:
    """In runs as short as the ring all that one reads is read in the other's turns."""
    where = replace(cluster(10**6, 10**6, 10**6, disk=1e7), default_link=Link(1e12, 0.0))

    def token_s(length: int) -> float:
        runs = [Stage.on(f"w{b // length % 2}", 1 + b, 1 + b + length) for b in range(0, 24, length)]
        stages = (Stage.on("h", 0, 1), *(replace(run, window=3) for run in runs), Stage.on("h", 25, 26))
        return evaluate(stages, LONG, chain(26), where, OPTIONS).tpot_s

    read_s = 24 * BIG / 1e7
    assert token_s(2) == pytest.approx(read_s / 2, rel=0.1)
    assert token_s(12) > 1.5 * token_s(2)


def test_rounds_are_planned_where_they_save_time() -> None:
    memory_bytes = BESIDE + 14 * 100 + 4 * BIG
    slow, flows = cluster(ENDS, memory_bytes, memory_bytes, disk=1e6), chain(26)
    made = plan_with_windows(LONG, flows, slow, OPTIONS, None)
    assert check_plan(made, LONG, flows, slow, OPTIONS) == []
    leads = [stage.lead for stage in made.stages]
    assert min(leads.count("w0"), leads.count("w1")) > 1
    assert {t.source for t in made.transmissions} == {"h", "w0", "w1"}
    pinned = plan_with_windows(LONG, flows, slow, replace(OPTIONS, pins=(Pin(1, 2, "w0"),)), None)
    assert len(pinned.stages) == 4
    assert made.tpot_s < 0.7 * pinned.tpot_s


def test_a_faster_disk_gets_more() -> None:
    where = cluster(ENDS, 50_000, 50_000)
    first, second = (
        replace(d, disk_bytes_per_s=rate) for d, rate in zip(where.devices[1:], (1e6, 9e6), strict=True)
    )
    made = planned(replace(where, devices=(where.devices[0], first, second)), None)
    runs = Counter(name for stage in made.stages for name in [stage.lead] * len(stage.blocks))
    assert runs["w1"] > runs["w0"]


def test_where_not_even_a_window_fits_both_numbers_are_told() -> None:
    with pytest.raises(
        CompileError, match=r"needs 32 KiB, the largest device \(w0\) has 32 KiB free"
    ) as caught:
        planned(cluster(ENDS, BESIDE + BIG), None)
    assert (caught.value.code, caught.value.exit_code) == ("P201", 3)


def test_a_narrower_one_is_taken_where_two_do_not_fit() -> None:
    made = planned(cluster(ENDS, BESIDE + BIG + 1000 + PAGE), None)
    assert made.stages[1].window == 1


@pytest.mark.parametrize("count", [None, 3])
def test_a_group_streams_parts_of_blocks_that_no_device_has_room_for(count: int | None) -> None:
    parts, options = linear(COSTS), replace(OPTIONS, tensor_parallel=count)
    where = cluster(ENDS + BIG - PAGE, BESIDE + BIG - PAGE, BESIDE + BIG - PAGE)
    made = plan_with_windows(COSTS, FLOWS, where, options, None, parts)
    assert check_plan(made, COSTS, FLOWS, where, options, parts) == []
    group = made.stages[1]
    assert (group.devices, group.start, group.stop) == (("h", "w0", "w1"), 1, 11)
    assert 0 < group.window < 20  # of ten shards and ten tails
    with pytest.raises(CompileError, match="no feasible plan"):
        plan_with_windows(COSTS, FLOWS, where, replace(OPTIONS, tensor_parallel=1), None, parts)


def test_where_nothing_fits_beside_a_pin_the_memory_is_what_is_told_of() -> None:
    where, options = cluster(ENDS, BESIDE + BIG - PAGE), replace(OPTIONS, pins=(Pin(1, 2, "w0"),))
    with pytest.raises(CompileError, match="no feasible plan") as caught:
        plan_with_windows(COSTS, FLOWS, where, options, None, linear(COSTS))
    assert (caught.value.code, caught.value.exit_code) == ("P201", 3)


@pytest.mark.parametrize(("text", "window"), [("auto", None), ("off", 0), ("1", 1), ("48", 48)])
def test_window_option(text: str, window: int | None) -> None:
    assert parse_window(text) == window


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "on", "99999999999999", "\u0663"])
def test_what_is_no_window(text: str) -> None:
    with pytest.raises(CompileError, match="not a window") as caught:
        parse_window(text)
    assert (caught.value.code, caught.value.exit_code) == ("P218", 2)


def test_a_device_that_can_keep_most_of_its_blocks_gets_more() -> None:
    """Priced at first as if it read them all, as one of the same disk and a quarter of the memory does."""
    where = cluster(ENDS, BESIDE + 1000 + 4 * PAIR, BESIDE + 1000 + PAIR)
    made = planned(where, None)
    runs = {stage.lead: len(stage.blocks) for stage in made.stages}
    assert runs["w0"] > runs.get("w1", 0)
    assert made.tpot_s <= planned(where, 2).tpot_s


# An output head of three pieces, each as large as the largest block of a layer.
PIECES = (*COSTS[:11], *(replace(cost(b, BIG), of_output=True) for b in (11, 12, 13)))
WHOLE = (*COSTS[:11], cost(11, 3 * BIG))


def in_pieces(where: Cluster, window: int | None, **wishes: object) -> Plan:
    options = replace(OPTIONS, **wishes)
    made = plan_with_windows(WHOLE, FLOWS, where, options, window, None, lambda: PIECES)
    costs = PIECES if made.stages[-1].stop == len(PIECES) else WHOLE
    assert check_plan(made, costs, FLOWS, where, options) == []
    return made


def test_an_output_head_in_pieces_streams_and_stays_on_the_head() -> None:
    head = PAGE + 2 * BIG + BESIDE  # it lacks a third of the output head
    where = cluster(head, 10**6)
    made = in_pieces(where, None)
    assert [(s.lead, s.start, s.stop, s.window) for s in made.stages] == [
        ("h", 0, 1, 2),
        ("w0", 1, 11, 0),
        ("h", 11, 14, 2),
    ]
    assert made.devices["h"].peak_bytes == head
    described = envelope({"h": (0, 11, 12, 13)}, PIECES, where, made.stages).devices["h"]
    assert (described.streamed, described.ring) == ((11, 12, 13), 2)
    with pytest.raises(CompileError, match="no feasible plan") as caught:
        in_pieces(where, 0)
    assert caught.value.code == "P201"


def test_pieces_are_one_block_where_nothing_streams() -> None:
    made = in_pieces(cluster(PAGE + 3 * BIG + BESIDE, 10**6), None)
    assert (made.stages[-1].stop, {stage.window for stage in made.stages}) == (12, {0})


@pytest.mark.parametrize("window", [1, 2, 3, 9])
def test_a_head_with_layers_and_pieces_has_one_ring_for_both(window: int) -> None:
    made = in_pieces(cluster(10**6), window)
    (stage,) = made.stages
    assert stage.window == window
    described = envelope({"h": range(14)}, PIECES, cluster(10**6), made.stages).devices["h"]
    assert len(described.streamed) == 13 - window + described.ring
    assert {11, 12, 13} & set(described.streamed)
    assert weights_bytes(described, range(14)) == made.devices["h"].weights_bytes


def test_others_hold_no_piece_of_the_output_head_and_none_is_pinned_elsewhere() -> None:
    where = cluster(PAGE + 2 * BIG + BESIDE, 10**6, 10**6)
    made = in_pieces(where, None, use_all=True)
    full = with_spares(
        made, PIECES, FLOWS, where, OPTIONS, graph_record(with_pieces(layered(5), 3)), Spare.ALL
    )
    held = {b for name, blocks in full.held.items() if name != "h" for b in blocks}
    assert held == set(range(1, 11))
    moved = (stage for move in full.moves for stage in move.stages if stage.lead != "h")
    assert all(stage.stop <= 11 for stage in moved)
    away = replace(made, stages=(*made.stages[:-1], Stage.on("w1", 11, 12), Stage.on("h", 12, 14)))
    assert "blocks 11 to 13 make the logits, the head h has them from 12 on" in check_plan(
        away, PIECES, FLOWS, where, OPTIONS
    )


def test_rounds_end_before_the_pieces_of_the_output_head() -> None:
    memory_bytes = BESIDE + 14 * 100 + 4 * BIG
    slow = cluster(PAGE + 3 * BIG + BESIDE, memory_bytes, memory_bytes, disk=1e6)
    costs = (*LONG[:25], *(replace(cost(b, BIG), of_output=True) for b in range(25, 29)))
    made = plan_with_windows(LONG, chain(26), slow, OPTIONS, 3, None, lambda: costs)
    leads = [stage.lead for stage in made.stages]
    assert min(leads.count("w0"), leads.count("w1")) > 1
    assert (made.stages[-1].lead, made.stages[-1].start, made.stages[-1].stop) == ("h", 25, 29)
