"""What it takes to go from some stages to others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from math import ceil, inf

from llrun.programs.rated import Rated, Stages, Way, owner_of
from llrun.schema import StageRecord


@dataclass(frozen=True)
class Cost:
    """Of a change of stages: seconds that it takes, bytes of weights to read, bytes of caches to copy over links."""

    seconds: float
    disk_bytes: int
    cache_bytes: int


def cost_of_change(rated: Rated, before: Stages, after: Stages, held: Sequence[int], lost: Set[str]) -> Cost:
    """See Placement.cost."""
    old, new = owner_of(before), owner_of(after)
    moved = [block for block, name in new.items() if old.get(block) != name]
    reading: dict[str, int] = defaultdict(int)
    for block in moved:
        each = rated.blocks.get(new[block], {}).get(block)
        reading[new[block]] += each.weights_bytes if each else 0
    read_s = max((read_seconds(rated, name, size) for name, size in reading.items()), default=0.0)
    if lost:
        wait_s, copied = again_seconds(rated, after, moved, held), 0
    else:
        wait_s, copied = _copying(rated, old, new, moved, held)
    return Cost(read_s + wait_s, sum(reading.values()), copied)


def read_seconds(rated: Rated, device: str, size_bytes: int) -> float:
    """Seconds to read weights from the device's disk."""
    rate = rated.envelope.devices[device].disk_bytes_per_s if device in rated.envelope.devices else 0.0
    return size_bytes / rate if rate > 0 else inf if size_bytes else 0.0


def rows_bytes(rated: Rated, block: int, device: str, held: Sequence[int]) -> int:
    """Bytes of a block's caches, of all sequences."""
    each = rated.blocks.get(device, {}).get(block)
    return each.cache_bytes * sum(held) // rated.shapes.context if each else 0


def _copying(
    rated: Rated, old: Mapping[int, str], new: Mapping[int, str], moved: Sequence[int], held: Sequence[int]
) -> tuple[float, int]:
    """Seconds of the device that copies the longest, and bytes of all."""
    ways: dict[Way, int] = defaultdict(int)
    for block in moved:
        if block in old and (size := rows_bytes(rated, block, new[block], held)):
            ways[old[block], new[block]] += size
    busy: dict[str, float] = defaultdict(float)
    for way, size in ways.items():
        for name in way:
            busy[name] += rated.link(*way).seconds(size)
    return max(busy.values(), default=0.0), sum(ways.values())


def again_seconds(rated: Rated, after: Stages, moved: Sequence[int], held: Sequence[int]) -> float:
    """Seconds until all that moved has been computed again."""
    cached = {b.id for device in rated.envelope.devices.values() for b in device.blocks if b.cache_bytes}
    last = max(cached.intersection(moved), default=None)
    chunks = sum(ceil(tokens / rated.shapes.chunk) for tokens in held)
    if last is None or not chunks:
        return 0.0
    way = [
        StageRecord.on(s.lead, s.blocks[0], min(s.blocks[1], last + 1)) for s in after if s.blocks[0] <= last
    ]
    return rated.pipeline_s(way, chunks)
