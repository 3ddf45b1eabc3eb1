"""Which blocks stream, and where each lies in the memory of a ring."""

from __future__ import annotations

import numpy_model
import pytest
from msgspec.structs import replace

from llrun.programs.ring import places, ring_of, weights_bytes

PAGE, MIB = 4096, 1 << 20


@pytest.mark.parametrize("sizes", [[5] * 7, [3, 9] * 5, [9, 3] * 4 + [9], [1, 2, 3, 4, 5], [7], [4, 4]])
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
