"""What it takes to go from some stages to others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from math import ceil, inf

import msgspec

from llrun.programs.groups import block_of, is_group
from llrun.programs.portions import portion
from llrun.programs.rated import Rated, Stages, Way, owned, owner_of


@dataclass(frozen=True)
class Cost:
    """Of a change of stages: seconds that it takes, bytes of weights to read, bytes of caches to copy over links."""

    seconds: float
    disk_bytes: int
    cache_bytes: int


def cost_of_change(rated: Rated, before: Stages, after: Stages, held: Sequence[int], lost: Set[str]) -> Cost:
    """See Placement.cost."""
    old, new, count = owner_of(before), owner_of(after), len(rated.graph.blocks)
    there, reading = owned(before, count), defaultdict[str, int](int)
    for name, pieces in owned(after, count).items():
        for piece in pieces - there.get(name, set()):
            each = rated.blocks.get(name, {}).get(piece)
            reading[name] += each.weights_bytes if each else 0
    read_s = max((read_seconds(rated, name, size) for name, size in reading.items()), default=0.0)
    moved = [block for block, name in new.items() if old.get(block) != name]
    again = {*recut(before, after), *(moved if lost else ())}
    wait_s, copied = (0.0, 0) if lost else _copying(rated, old, new, moved, held)
    wait_s += again_seconds(rated, after, sorted(again), held)
    return Cost(read_s + wait_s, sum(reading.values()), copied)


def recut(before: Stages, after: Stages) -> set[int]:
    """The blocks that are a group's before or after, and not the same group's: nobody has their caches as they are to
    be, so they are computed again."""
    old, new = _grouped(before), _grouped(after)
    return {block for block in old.keys() | new.keys() if before and old.get(block) != new.get(block)}


def _grouped(stages: Stages) -> Mapping[int, tuple[tuple[str, ...], tuple[float, ...], int]]:
    """[block]: devices, shares and division of the group that runs it, if any: who has which part of its caches."""
    return {
        block: (stage.devices, stage.shares, stage.division)
        for stage in stages
        if is_group(stage)
        for block in range(*stage.blocks)
    }


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
    count, devices = len(rated.graph.blocks), rated.envelope.devices.values()
    cached = {block_of(b.id, count) for device in devices for b in device.blocks if b.cache_bytes}
    last = max(cached.intersection(moved), default=None)
    if last is None or not any(held):
        return 0.0
    way = [
        msgspec.structs.replace(s, blocks=(s.blocks[0], min(s.blocks[1], last + 1)))
        for s in after
        if s.blocks[0] <= last
    ]
    rows = portion(rated, way, max(held))
    return rated.pipeline_s(way, sum(ceil(tokens / rows) for tokens in held), rows)
