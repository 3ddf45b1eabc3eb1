"""A group of devices as one device of a planning problem: its seconds, its links, and what it has room for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from llcompile.ir.cluster import Cluster, Device, Link
from llcompile.ir.plan import BlockCost, PieceCosts, ShardCosts, Stage
from llcompile.partition.disk import file_bytes
from llcompile.partition.evaluate import group_seconds
from llrun.schema import AllReduceKind

NOWHERE = Link(float("inf"), 0.0)  # from a device to itself
Bytes = NDArray[np.int64]


@dataclass(frozen=True)
class Group:
    """Devices of `cluster` by rank, with their shares, how they sum, and what each block costs in pieces; blocks that
    cannot be cut so are not in `cut`."""

    cluster: Cluster
    devices: tuple[str, ...]
    shares: tuple[float, ...]
    all_reduce: AllReduceKind
    root: int
    cut: Mapping[int, PieceCosts]

    @property
    def name(self) -> str:
        return "+".join(self.devices)

    @property
    def has_head(self) -> bool:
        return self.cluster.head in self.devices

    def stage(self, start: int, stop: int) -> Stage:
        """Blocks start..stop-1 on the group."""
        return Stage(self.devices, self.shares, start, stop, 0, self.all_reduce, self.root)

    @cached_property
    def members(self) -> tuple[Device, ...]:
        return tuple(map(self.cluster.device, self.devices))

    @property
    def device(self) -> Device:
        """What stands for the group in a cluster: its figures are asked of the group, not of this."""
        memory = sum(device.memory_bytes for device in self.members)
        runtime = sum(device.runtime_bytes for device in self.members)
        return replace(
            self.members[0], name=self.name, memory_bytes=memory, runtime_bytes=runtime, disk_bytes=None
        )

    @property
    def as_one(self) -> Cluster:
        """The cluster in which the group stands for its devices; the head stays beside it."""
        others = tuple(
            d for d in self.cluster.devices if d.name == self.cluster.head or d.name not in self.devices
        )
        return replace(self.cluster, devices=(*others, self.device))

    def seconds(self, decode: bool) -> Mapping[int, float]:
        """[block]: seconds of a token (`decode`) or of a chunk."""
        stage, alike = self.stage(0, 0), {id(cut): cut for cut in self.cut.values()}
        known = {
            key: group_seconds(stage, cut, self.members, self.cluster, decode) for key, cut in alike.items()
        }
        return {block: known[id(cut)] for block, cut in self.cut.items()}

    def link_from(self, source: str) -> Link:
        """A message to all members that are not `source`, one after the other."""
        links = [self.cluster.link(source, name) for name in self.devices if name != source]
        slowness = sum(1 / link.bytes_per_s for link in links)
        return Link(1 / slowness, max(link.latency_s for link in links)) if slowness else NOWHERE

    def link_to(self, destination: str) -> Link:
        """A message of the lead; to a member there is nothing to send."""
        return (
            NOWHERE if destination in self.devices else self.cluster.link(self.stage(0, 0).lead, destination)
        )

    # --- what there is room for --------------------------------------------------------------------------------------

    @cached_property
    def stored(self) -> Bytes:
        """[rank, b]: weights and caches of the pieces of the blocks before b."""
        return np.cumsum(np.pad(self.stored_by_block, ((0, 0), (1, 0))), axis=1)

    @cached_property
    def stored_by_block(self) -> Bytes:
        """[rank, b]: weights and caches of the pieces of block b."""
        return self._table(lambda cost: cost.weights_bytes + cost.cache_bytes, sum)

    @cached_property
    def files(self) -> Bytes:
        """[rank, b]: the files of the pieces of the blocks before b."""
        return np.cumsum(np.pad(self._table(file_bytes, sum), ((0, 0), (1, 0))), axis=1)

    @cached_property
    def active(self) -> Bytes:
        """[rank, b]: the largest activations of a piece of block b."""
        return self._table(lambda cost: cost.activation_bytes, max)

    @cached_property
    def partial(self) -> Bytes:
        """[b]: bytes of a buffer for a chunk's part of the sum of block b."""
        return np.array([self.cut[b].buffer_bytes if b in self.cut else 0 for b in range(self._end)])

    @cached_property
    def _end(self) -> int:
        return max(self.cut, default=-1) + 1

    def _table(self, figure: Callable[[BlockCost], int], of_both: Callable[[Iterable[int]], int]) -> Bytes:
        """[rank, block]: a figure of shard and tail."""
        table = np.zeros((len(self.devices), self._end), dtype=np.int64)
        for block, cut in self.cut.items():
            pairs = zip(cut.shards, cut.tails, strict=True)
            table[:, block] = [of_both(map(figure, pair)) for pair in pairs]
        return table

    def cuts(self, start: int, stop: int) -> bool:
        """Whether all of blocks start..stop-1 can be cut so."""
        return all(block in self.cut for block in range(start, stop))

    def needed(self, start: int, stop: int, own: Mapping[str, Sequence[BlockCost]]) -> Bytes:
        """[rank]: bytes that the pieces of blocks start..stop-1 need beside message buffers and the runtime, with the
        whole blocks `own` that a member has besides."""
        kept = [own.get(name, ()) for name in self.devices]
        stored = [sum(cost.weights_bytes + cost.cache_bytes for cost in costs) for costs in kept]
        active = [max((cost.activation_bytes for cost in costs), default=0) for costs in kept]
        peak = np.maximum(self.active[:, start:stop].max(axis=1), active)
        parts = len(self.devices) * int(self.partial[start:stop].max())
        needs: Bytes = self.stored[:, stop] - self.stored[:, start] + stored + peak + parts
        return needs

    def on_disk(self, start: int, stop: int, own: Mapping[str, Sequence[BlockCost]]) -> Bytes:
        """[rank]: bytes of the files of the same."""
        kept = [sum(map(file_bytes, own.get(name, ()))) for name in self.devices]
        taken: Bytes = self.files[:, stop] - self.files[:, start] + kept
        return taken


def ways_to_sum(
    cluster: Cluster,
    devices: tuple[str, ...],
    shares: tuple[float, ...],
    blocks: Sequence[int],
    pieces: ShardCosts,
) -> tuple[Group, ...]:
    """The groups of `devices` with `shares` whose way of summing is worth a look: no other is as quick for a token and
    for a chunk as well. Of equals the first of direct, star with each root, and ring. None where no block can be cut.
    """
    roots = [(AllReduceKind.STAR, root) for root in range(len(devices))]
    ways = [(AllReduceKind.DIRECT, 0), *roots, (AllReduceKind.RING, 0)]
    cuts = {parts: pieces(blocks, shares, parts) for parts in (1, len(devices))}
    found: list[tuple[float, float, Group]] = []
    for kind, root in ways:
        cut = cuts[len(devices) if kind is AllReduceKind.DIRECT else 1]
        if cut:
            group = Group(cluster, devices, shares, kind, root, cut)
            found.append((sum(group.seconds(True).values()), sum(group.seconds(False).values()), group))
    kept: list[tuple[float, float, Group]] = []
    for token, chunk, group in sorted(found, key=lambda each: each[:2]):
        if not kept or chunk < kept[-1][1]:
            kept.append((token, chunk, group))
    return tuple(group for _, _, group in kept)
