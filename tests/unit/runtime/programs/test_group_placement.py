"""What stages with a group give and cost, whether they can be, and that a good one is left alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf

import msgspec
import numpy_group
import pytest
from numpy_group import Group, split

from llrun.programs.placement import LinkRate, Placement, Rates
from llrun.programs.rated import owned, owners_of
from llrun.schema import AllReduceKind, StageRecord

STAR, DIRECT, RING = AllReduceKind.STAR, AllReduceKind.DIRECT, AllReduceKind.RING
NAMES = ["h", "a", "b"]
ROW = 64 / 1e8  # seconds of a row on a link
EVERYONE = {name: range(7) for name in NAMES}


def placement(
    group: Group,
    spares: Mapping[str, Iterable[int]] | None = None,
    slowness: Mapping[str, float] | None = None,
    links: Mapping[tuple[str, str], LinkRate] | None = None,
) -> Placement:
    return Placement.of(numpy_group.record("h", NAMES, group, spares), Rates(slowness or {}, links or {}))


@pytest.mark.parametrize(
    ("kind", "sum_s"), [(STAR, 2 * (1e-3 + ROW)), (DIRECT, 1e-3 + ROW), (RING, 2 * (1e-3 + ROW))]
)
def test_a_token_takes_the_slowest_shard_the_sum_and_the_slowest_tail(
    kind: AllReduceKind, sum_s: float
) -> None:
    """Shards of 6/16 and 10/16 ms, tails of 0.01 ms; a hop to both, one back, the head's five blocks."""
    group = split(("a", "b"), kind, blocks=(2, 4))
    shard_s, tail_s = 10 / 16 * 1e-3, 1e-5
    together = 2 * (shard_s + sum_s + tail_s)
    hops = (1e-3 + 2 * ROW) + (1e-3 + ROW)
    made = placement(group)
    assert made.predict(numpy_group.stages("h", group)) == pytest.approx(5e-3 + together + hops)
    slow = placement(group, slowness={"a": 5.0})  # now the small share takes longer
    together = 2 * (5 * 6 / 16 * 1e-3 + sum_s + 5 * 1e-5)
    assert slow.predict(numpy_group.stages("h", group)) == pytest.approx(5e-3 + together + hops)
    assert slow.seconds_of(numpy_group.stages("h", group)) == pytest.approx(
        {"h": 5e-3, "a": 2 * 5 * (6 / 16 + 0.01) * 1e-3, "b": 2 * (10 / 16 + 0.01) * 1e-3}
    )


def test_who_is_in_the_group_already_is_sent_nothing() -> None:
    group = split(("h", "a"), DIRECT)
    seconds = 5 * ((10 / 16 + 0.01) * 1e-3 + 1e-3 + ROW)
    # h1 of the head goes to a; h0 skips to the trimming block, which a computes too: one message of it, with the hop
    assert placement(group).predict(numpy_group.stages("h", group)) == pytest.approx(
        2e-3 + seconds + 1e-3 + ROW
    )


def test_chunks_behind_each_other_wait_for_the_whole_group() -> None:
    group = split(("a", "b"), DIRECT, blocks=(2, 4))
    made, stages = placement(group), numpy_group.stages("h", group)
    once = made.chunk_s(stages)
    together = 2 * (4 * (10 / 16 + 0.01) * 1e-3 + 1e-3 + 8 * ROW)
    assert made.pipeline_s(stages, 3) == pytest.approx(
        once + 2 * max(together, 12e-3)
    )  # of the head, two of whose five blocks need the last row alone
    slow = placement(group, slowness={"b": 10.0})
    together = 2 * (40 * (10 / 16 + 0.01) * 1e-3 + 1e-3 + 8 * ROW)
    assert slow.pipeline_s(stages, 3) == pytest.approx(slow.chunk_s(stages) + 2 * together)


def test_why_a_group_cannot_be() -> None:
    group = split(("a", "b"), STAR, 1, blocks=(2, 4))
    stages = numpy_group.stages("h", group)
    assert placement(group).faults(stages) == []
    other = msgspec.structs.replace(stages[1], root=0)
    assert placement(group).faults((stages[0], other, stages[2])) == [
        "blocks 2 to 3 are not cut for a, b with these shares"
    ]
    wider = (StageRecord.on("h", 0, 1), group.stage(1, 4), stages[2])
    assert placement(group).faults(wider) == ["blocks 1 to 3 are not cut for a, b with these shares"]
    part = (StageRecord.on("h", 0, 2), group.stage(2, 3), StageRecord.on("a", 3, 4), stages[2])
    assert placement(group, {"a": [3]}).faults(part) == []
    assert placement(group).faults((group.stage(0, 6), StageRecord.on("h", 6, 7))) == [
        "the first and the last stage are on a+b and h, not on the head h"
    ]
    twice = (stages[0], msgspec.structs.replace(stages[1], devices=("a", "a")), stages[2])
    assert placement(group).faults(twice) == ["blocks 2 to 3 are on a, a, each of which can be there once"]
    gone = Placement.of(numpy_group.record("h", NAMES, group), alive={"h", "a"})
    assert gone.faults(stages) == ["b is not there"]


def test_who_holds_no_piece_cannot_be_of_the_group() -> None:
    group = split(("a", "b"), STAR, blocks=(2, 4))
    made, stages = placement(group), numpy_group.stages("h", group)
    for missing, fault in (
        (11, "b does not hold its pieces of block 2"),
        (12, "b does not hold its pieces of block 2"),
    ):
        kept = tuple(b for b in made.envelope.devices["b"].blocks if b.id != missing)
        assert with_device(made, "b", blocks=kept).faults(stages) == [fault]
    last = tuple(b for b in made.envelope.devices["b"].blocks if b.id != 14)
    assert with_device(made, "b", blocks=last).faults(stages) == []  # the lead alone finishes the last block
    last = tuple(b for b in made.envelope.devices["a"].blocks if b.id != 14)
    assert with_device(made, "a", blocks=last).faults(stages) == ["a does not hold its pieces of block 3"]
    assert with_device(made, "a", blocks=last).predict(stages) == inf


def with_device(made: Placement, name: str, **changes: object) -> Placement:
    device = msgspec.structs.replace(made.envelope.devices[name], **changes)
    envelope = msgspec.structs.replace(made.envelope, devices={**made.envelope.devices, name: device})
    return Placement(made.graph, envelope, made.head, made.shapes, made.rates, made.alive)


def test_memory_has_the_pieces_and_the_parts_of_a_sum() -> None:
    """a: two shards of 6/16 MiB, their caches and tails; activations; buffers: two chunks, and two parts of a sum."""
    group = split(("a", "b"), STAR, blocks=(2, 4))
    weights, caches = 4 * (6 << 20) // 16, 2 * 256 * 6 * 4
    needs = weights + caches + (1 << 16) + 2 * 8 * 64 + 2 * 8 * 64 + (1 << 20)
    made, stages = placement(group), numpy_group.stages("h", group)
    assert with_device(made, "a", memory_bytes=needs).faults(stages) == []
    assert with_device(made, "a", memory_bytes=needs - 1).faults(stages) == [
        f"a needs {needs} bytes of memory, it has {needs - 1}"
    ]


def test_a_good_group_is_left_alone_and_a_bad_one_is_not() -> None:
    group = split(("a", "b"), DIRECT, blocks=(1, 6))
    stages = numpy_group.stages("h", group)
    near = {way: LinkRate(1e-5, 1e8) for way in [(a, b) for a in NAMES for b in NAMES if a != b]}
    alone = {"a": range(1, 6), "b": range(1, 6)}
    good = placement(group, alone, links=near)
    assert good.predict(stages) < good.predict((stages[0], StageRecord.on("b", 1, 6), stages[2]))
    assert good.best() == good.best(stages) == good.best(stages, [10], 100.0) == stages
    bad = placement(group, alone, slowness={"a": 50.0}, links=near)
    assert bad.best(stages, [10], 1000.0) == (stages[0], StageRecord.on("b", 1, 6), stages[2])
    assert bad.best(stages, [10], 0.01) == stages  # not worth the move
    lost = Placement.of(numpy_group.record("h", NAMES, group, alone), Rates(links=near), alive={"h", "b"})
    assert lost.best(stages, [10], 0.0, {"a"}) == (stages[0], StageRecord.on("b", 1, 6), stages[2])


def test_what_is_cut_otherwise_is_read_and_computed_again() -> None:
    """From the group to b: its two blocks are read, 1 MiB each at 1e9 a second, nothing is copied, and 40 tokens, 5
    chunks of 8, go through the head's first blocks and these again."""
    group = split(("a", "b"), STAR, blocks=(2, 4))
    made, stages = placement(group, {"b": [2, 3]}), numpy_group.stages("h", group)
    after = (stages[0], StageRecord.on("b", 2, 4), stages[2])
    cost = made.cost(stages, after, [30, 10])
    assert (cost.disk_bytes, cost.cache_bytes) == (2 << 20, 0)
    assert cost.seconds == pytest.approx((2 << 20) / 1e9 + made.pipeline_s(after[:2], 4 + 2))
    back = made.cost(after, stages, [30, 10])
    assert back.disk_bytes == 4 * (16 << 20) // 16
    assert back.seconds == pytest.approx(4 * (10 << 20) // 16 / 1e9 + made.pipeline_s(stages[:2], 6))
    assert made.cost(stages, stages, [30]).seconds == 0.0


def test_who_runs_what() -> None:
    group = split(("a", "b"), STAR, blocks=(2, 4))
    stages = numpy_group.stages("h", group)
    assert owned(stages, 7) == {"h": {0, 1, 4, 5, 6}, "a": {11, 12, 13, 14}, "b": {11, 12, 13, 14}}
    assert owners_of(stages) == {0: "h", 1: "h", 2: "a+b", 3: "a+b", 4: "h", 5: "h", 6: "h"}
