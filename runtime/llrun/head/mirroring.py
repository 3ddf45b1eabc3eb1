"""Whose caches are copied where as they are made, so that a loss computes next to nothing again: pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from llrun.head.cluster import Cluster
from llrun.programs.groups import is_group
from llrun.programs.rated import owned, owner_of, spans
from llrun.programs.ring import weights_bytes
from llrun.schema import StageRecord
from llrun.wire.messages import Way

Ways = Mapping[str, tuple[Way, ...]]


def ways_of(cluster: Cluster, stages: Sequence[StageRecord]) -> Ways:
    """For each worker with a stage: where its blocks would go were it lost, and so where their caches are copied.

    Of what a group computes nothing is copied: nobody else has its pieces. What a device mirrors is in its memory
    beside what it runs: blocks for which it has no room are left out.
    """
    room, cached = _room(cluster, stages), cluster.cached
    sizes = {
        (name, block.id): block.cache_bytes
        for name, device in cluster.record.envelope.devices.items()
        for block in device.blocks
    }
    ways: dict[str, tuple[Way, ...]] = {}
    count = len(cluster.record.graph.blocks)
    for device, blocks in sorted(owned(stages, count).items()):
        if device == cluster.head:
            continue
        after = cluster.placement(cluster.alive - {device}).best(stages, lost={device})
        owners, mine = owner_of(after or ()), defaultdict[str, list[int]](list)
        for block in sorted(blocks & cached.get(device, frozenset()) & set(range(count))):
            owner = owners.get(block)
            if owner is not None and room[owner] >= sizes[owner, block]:
                room[owner] -= sizes[owner, block]
                mine[owner].append(block)
        ways[device] = tuple(Way(name, tuple(taken)) for name, taken in sorted(mine.items()))
    return ways


def left_out(stages: Sequence[StageRecord]) -> str | None:
    """What is not mirrored, in words: what groups compute."""
    blocks = {block for stage in stages if is_group(stage) for block in range(*stage.blocks)}
    return f"--mirror copies nothing of blocks {spans(blocks)}, which groups compute" if blocks else None


def links_of(ways: Ways) -> dict[str, set[str]]:
    """Whom each device has to be connected with for them."""
    peers: dict[str, set[str]] = defaultdict(set)
    for device, all_ways in ways.items():
        for way in all_ways:
            peers[device].add(way.destination)
            peers[way.destination].add(device)
    return peers


def both(links: Mapping[str, Iterable[str]], others: Mapping[str, Iterable[str]]) -> dict[str, set[str]]:
    """Whom each device has to be connected with for these, and for those."""
    return {
        device: {*links.get(device, ()), *others.get(device, ())} for device in links.keys() | others.keys()
    }


def _room(cluster: Cluster, stages: Sequence[StageRecord]) -> dict[str, int]:
    """Bytes that each device that takes part has left beside what it runs."""
    room, placement = {}, cluster.placement()
    blocks = owned(stages, len(cluster.record.graph.blocks))
    for name in cluster.alive:
        device = cluster.record.envelope.devices[name]
        mine = [block for block in device.blocks if block.id in blocks.get(name, ())]
        taken = weights_bytes(device, [block.id for block in mine]) + sum(block.cache_bytes for block in mine)
        taken += max((block.activation_bytes for block in mine), default=0) + device.runtime_bytes
        taken += placement.buffer_bytes + placement.group_buffer_bytes(stages, name)
        room[name] = device.memory_bytes - taken
    return room
