"""What a group's sums take: for the planner and for who balances, by one formula.

A device sends, and receives, one message after another; the messages of one round share the greatest latency of its
links. Blocks follow each other, so what counts is the time from one sum to the next: who has a sum goes on, whether
others have it or not. Delays alone: a star takes two, a direct exchange one, a ring of k devices k, though a single sum
is with everybody only after 2 (k - 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import assert_never

from llrun.schema import AllReduceKind

Way = tuple[str, str]
Delay = Callable[[str, str], tuple[float, float]]  # from, to: seconds of latency, seconds a byte


def rounds(kind: AllReduceKind, devices: Sequence[str], root: int) -> tuple[tuple[Way, ...], ...]:
    """The messages of an all-reduce among `devices`, round by round; each has the size of what is summed."""
    others = [name for rank, name in enumerate(devices) if rank != root]
    match kind:
        case AllReduceKind.STAR:
            up = tuple((name, devices[root]) for name in others)
            return up, tuple((to, source) for source, to in up)
        case AllReduceKind.DIRECT:
            return (tuple((a, b) for a in devices for b in devices if a != b),)
        case AllReduceKind.RING:
            way = [*pairwise(devices)]
            around = [(devices[-1], devices[0]), *way[:-1]]
            return tuple((hop,) for hop in (*way, *around))
        case _:
            assert_never(kind)


def sum_seconds(
    kind: AllReduceKind, devices: Sequence[str], root: int, size_bytes: float, delay: Delay
) -> float:
    """Seconds that an all-reduce of `size_bytes` among `devices` adds to each block of a chain, beside computing."""
    if kind is AllReduceKind.RING:
        return _around(devices, size_bytes, delay)
    return sum(round_seconds(ways, size_bytes, delay) for ways in rounds(kind, devices, root))


def _around(devices: Sequence[str], size_bytes: float, delay: Delay) -> float:
    """Once around a ring: the first has the sum and begins the next while it goes on to the others. On each link but
    the last two that shares the link with the next running sum."""
    total_s = 0.0
    for rank, (source, to) in enumerate(pairwise((*devices, devices[0]))):
        wait_s, byte_s = delay(source, to)
        total_s += wait_s + byte_s * size_bytes * (2 if rank < len(devices) - 2 else 1)
    return total_s


def round_seconds(ways: Iterable[Way], size_bytes: float, delay: Delay) -> float:
    """Seconds until messages of `size_bytes` that leave at once have all arrived."""
    latency_s, sending, receiving = 0.0, dict[str, float](), dict[str, float]()
    for source, to in ways:
        wait_s, byte_s = delay(source, to)
        latency_s = max(latency_s, wait_s)
        sending[source] = sending.get(source, 0.0) + byte_s * size_bytes
        receiving[to] = receiving.get(to, 0.0) + byte_s * size_bytes
    return latency_s + max((*sending.values(), *receiving.values()), default=0.0)
