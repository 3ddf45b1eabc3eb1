"""What a group's sums take: for the planner and for who balances, by one formula.

A device sends, and receives, one message after another; the messages of one round share the greatest latency of its
links. Delays alone: a star takes two, a direct exchange one, a ring of k devices 2 (k - 1).
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
    """Seconds of an all-reduce of `size_bytes` among `devices`."""
    return sum(round_seconds(ways, size_bytes, delay) for ways in rounds(kind, devices, root))


def round_seconds(ways: Iterable[Way], size_bytes: float, delay: Delay) -> float:
    """Seconds until messages of `size_bytes` that leave at once have all arrived."""
    latency_s, sending, receiving = 0.0, dict[str, float](), dict[str, float]()
    for source, to in ways:
        wait_s, byte_s = delay(source, to)
        latency_s = max(latency_s, wait_s)
        sending[source] = sending.get(source, 0.0) + byte_s * size_bytes
        receiving[to] = receiving.get(to, 0.0) + byte_s * size_bytes
    return latency_s + max((*sending.values(), *receiving.values()), default=0.0)
