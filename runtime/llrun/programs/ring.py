"""Blocks that stream from disk while others run: which of a device's, where each lies in memory, what that takes.

A device with a window of W blocks has W of them in memory at once, or a few more small ones. Up to AHEAD + 1 of these
are the ring: the one that runs and those that are read ahead of it, each in a place of its own; the others are kept.
Blocks come in a fixed order, the first after the last. With attention and MLP blocks in turn two ahead are what it
takes for reading to go on whichever runs: one alone would wait for the large one to end before the next large one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import gcd

from llrun.schema import EnvelopeDevice

AHEAD = 2
PAGE = 4096
ROUNDS = (
    12  # after so many at most the places repeat: of 1, 2 or 3 blocks, and of two kinds of blocks in turn
)


@dataclass(frozen=True)
class Places:
    """`starts`: where each block lies, by its number in the order, for one round after the other; then the first again.
    `size_bytes`: what all take, some at the same place at different times."""

    starts: tuple[int, ...]
    size_bytes: int


def ring_of(blocks: Sequence[int], window: int) -> tuple[tuple[int, ...], int]:
    """Of `blocks`, in the order in which they run, those that stream where `window` are in memory at once, and how many
    of these are. None where the window holds all, or is 0: all. Those that are kept lie evenly between."""
    count = len(blocks)
    if not 0 < window < count:
        return (), 0
    ring = min(window, AHEAD + 1)
    kept = window - ring
    stream = (
        block for index, block in enumerate(blocks) if (index + 1) * kept // count == index * kept // count
    )
    return tuple(stream), ring


def places(sizes: Sequence[int], ring: int) -> Places:
    """Where blocks of `sizes` lie of which any `ring` that follow each other are in memory at once: each on a page, and
    as low as those allow that may still be there, from the second round on somewhere else where that is lower; or in
    `ring` places by turns, each as large as what comes there, where that takes less."""
    padded = [-(-size // PAGE) * PAGE for size in sizes]
    count = len(padded) * (ROUNDS // gcd(len(padded), ROUNDS)) if padded else 0
    order = [padded[index % len(padded)] for index in range(count)]
    return min(_lowest(order, ring), _by_turns(order, ring), key=lambda found: found.size_bytes)


def _lowest(order: Sequence[int], ring: int) -> Places:
    starts: list[int] = []
    for index, size in enumerate(order):
        start = 0
        near = range(max(0, index - ring + 1), index)
        for low, high in sorted((starts[each], starts[each] + order[each]) for each in near):
            if start + size <= low:
                break
            start = max(start, high)
        starts.append(start)
    return Places(tuple(starts), max(map(sum, zip(starts, order, strict=True)), default=0))


def _by_turns(order: Sequence[int], ring: int) -> Places:
    widths = [max(order[turn::ring], default=0) for turn in range(ring)]
    lows = [0, *accumulate(widths)]
    return Places(tuple(lows[index % ring] for index in range(len(order))), lows[-1])


def weights_bytes(device: EnvelopeDevice, blocks: Collection[int]) -> int:
    """What the weights of `blocks` take on `device` at most: those that stream there take the ring's memory, be it
    few or many of them."""
    sizes = {block.id: block.weights_bytes for block in device.blocks}
    streamed = set(device.streamed).intersection(blocks)
    room = (
        places([sizes.get(block, 0) for block in device.streamed], device.ring).size_bytes if streamed else 0
    )
    return room + sum(sizes.get(block, 0) for block in set(blocks) - streamed)
