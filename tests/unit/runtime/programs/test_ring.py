"""Which blocks stream, and where each lies in the memory of a ring."""

from __future__ import annotations

import numpy_model
import pytest
from msgspec.structs import replace

from llrun.programs.placement import Placement
from llrun.programs.ring import places, ring_of, weights_bytes
from llrun.schema import Slice, StageRecord

PAGE, MIB = 4096, 1 << 20


@pytest.mark.parametrize(
    "sizes", [[5] * 7, [3, 9] * 5, [9, *[8] * 6, 7], [9, 3] * 4 + [9], [1, 2, 3, 4, 5], [7], [4, 4]]
)
@pytest.mark.parametrize("ring", [1, 2, 3])
def test_blocks_that_follow_each_other_never_share_memory(sizes: list[int], ring: int) -> None:
    pages = [size * PAGE for size in sizes]
    made = places(pages, min(ring, len(sizes)))
    assert len(made.starts) % len(sizes) == 0
    for index, start in enumerate(made.starts):
        assert start % PAGE == 0
        assert start + pages[index % len(sizes)] <= made.size_bytes
        for before in range(max(0, index - min(ring, len(sizes)) + 1), index):
            low, high = made.starts[before], made.starts[before] + pages[before % len(sizes)]
            assert start >= high or start + pages[index % len(sizes)] <= low


def test_what_a_ring_takes() -> None:
    assert places([5 * PAGE] * 7, 2).size_bytes == 10 * PAGE
    assert places([3 * PAGE, 9 * PAGE] * 5, 2).size_bytes == 12 * PAGE
    assert places([3 * PAGE, 9 * PAGE] * 5, 3).size_bytes == 24 * PAGE
    # The first a little larger than the others, the last smaller, as pieces of an output head are.
    assert places([9 * PAGE, *[8 * PAGE] * 6, 7 * PAGE], 2).size_bytes == 17 * PAGE
    assert places([9 * PAGE, *[8 * PAGE] * 3, 7 * PAGE], 3).size_bytes <= 27 * PAGE
    assert places([5 * PAGE - 1], 1).size_bytes == 5 * PAGE
    assert places([], 0).size_bytes == 0


def test_equal_blocks_come_to_lie_where_the_oldest_was_also_around_the_end() -> None:
    """So the first block of the next round can be read while the last one runs, however many there are."""
    starts = places([PAGE] * 7, 3).starts
    assert [start // PAGE for start in (*starts, *starts[:3])] == [i % 3 for i in range(len(starts) + 3)]


@pytest.mark.parametrize(
    ("window", "stream", "ring"),
    [(0, (), 0), (10, (), 0), (12, (), 0), (1, tuple(range(10)), 1), (2, tuple(range(10)), 2),
     (3, tuple(range(10)), 3), (5, (0, 1, 2, 3, 5, 6, 7, 8), 3), (9, (0, 2, 5, 7), 3)],
)  # fmt: skip
def test_which_blocks_stream(window: int, stream: tuple[int, ...], ring: int) -> None:
    assert ring_of(range(10), window) == (stream, ring)
    if ring:
        assert 10 - len(stream) + ring == window


def test_what_stages_take_of_a_device_on_which_some_stream() -> None:
    device = numpy_model.record("bert", ["head", "anna", "bert"]).envelope.devices["bert"]
    assert weights_bytes(device, [1, 2, 3]) == 3 * MIB
    streaming = replace(device, streamed=(2, 3, 4, 5), ring=2)
    assert weights_bytes(streaming, [1, 2, 3, 4]) == 3 * MIB
    assert weights_bytes(streaming, [2]) == 2 * MIB
    assert weights_bytes(streaming, [1, 6]) == 2 * MIB


def streaming(memory_bytes: int, **changes: object) -> Slice:
    """The model over head and anna, who has 1 MiB for the runtime, `memory_bytes` for blocks, and so much beside as
    caches, activations and messages take."""
    record = numpy_model.record("head", ["head", "anna"])
    placement = Placement.of(record)
    anna = record.envelope.devices["anna"]
    beside = (
        anna.runtime_bytes
        + sum(block.cache_bytes for block in anna.blocks)
        + placement.buffer_bytes
        + (1 << 16)
    )
    anna = replace(anna, memory_bytes=beside + memory_bytes, disk_bytes_per_s=1e8, **changes)
    return replace(
        record, envelope=replace(record.envelope, devices={**record.envelope.devices, "anna": anna})
    )


STAGES = (StageRecord.on("head", 0, 1), StageRecord.on("anna", 1, 6), StageRecord.on("head", 6, 7))
FEWER = (StageRecord.on("head", 0, 3), StageRecord.on("anna", 3, 6), StageRecord.on("head", 6, 7))


def test_moves_know_what_streams() -> None:
    whole = Placement.of(streaming(5 * MIB))
    assert whole.faults(STAGES, STAGES) == []
    assert "anna needs" in Placement.of(streaming(5 * MIB - 1)).faults(STAGES)[0]
    ring = {"streamed": (1, 2, 3, 4, 5), "ring": 2}
    windowed = Placement.of(streaming(2 * MIB, **ring))
    assert windowed.faults(STAGES, FEWER) == []
    assert "anna needs" in Placement.of(streaming(2 * MIB - 1, **ring)).faults(STAGES)[0]
    assert windowed.predict(STAGES) == pytest.approx(5 * MIB / 1e8)
    assert whole.predict(STAGES) < 5 * MIB / 1e8
    assert windowed.seconds_of(STAGES) == whole.seconds_of(STAGES)
    assert windowed.chunk_s(STAGES) == pytest.approx(whole.chunk_s(STAGES) + 5 * (MIB / 1e8 - 4e-3))


def test_the_best_stages_are_found_among_windows() -> None:
    """The head is slow, and has no memory for more than the ends."""
    record = streaming(2 * MIB, streamed=(1, 2, 3, 4, 5), ring=2)
    head = record.envelope.devices["head"]
    least = head.runtime_bytes + 2 * MIB + Placement.of(record).buffer_bytes + (1 << 16)
    devices = {**record.envelope.devices, "head": replace(head, memory_bytes=least)}
    assert Placement.of(replace(record, envelope=replace(record.envelope, devices=devices))).best() == STAGES
    devices["anna"] = replace(devices["anna"], streamed=(), ring=0)
    assert Placement.of(replace(record, envelope=replace(record.envelope, devices=devices))).best() is None
