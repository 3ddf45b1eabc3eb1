"""Copies the caches of blocks that move, in rounds, while tokens go on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from llrun.head.cluster import Cluster
from llrun.head.feeding import Feeding
from llrun.programs.rated import owner_of
from llrun.schema import StageRecord
from llrun.wire.messages import CacheRows, Copy

FEW_TOKENS = 4  # of all sequences: so few are copied while nothing is fed
MOST_ROUNDS = 8


class Copying:
    """The rounds of one move. `moved_bytes`: what was copied so far."""

    def __init__(self, cluster: Cluster, feeding: Feeding) -> None:
        self._cluster = cluster
        self._feeding = feeding
        self._blocks: dict[tuple[str, str], list[int]] = {}  # (from, to): blocks with caches
        self._sent: dict[tuple[int, str], int] = {}  # (sequence, from): how many of its tokens were sent
        self._under_way: set[int] = set()
        self._number = 0
        self._rounds = 0
        self.moved_bytes = 0

    def plan(self, stages: Sequence[StageRecord]) -> None:
        """Begin anew: what has caches and changes its device. What a group computes, before or after, is not copied."""
        old, new = owner_of(self._cluster.stages), owner_of(stages)
        self.stop()
        self._blocks, self._sent = {}, {}
        self._rounds = self.moved_bytes = 0
        cached = self._cluster.cached
        for block, owner in new.items():
            if block in old and old[block] != owner and block in cached[owner]:
                self._blocks.setdefault((old[block], owner), []).append(block)

    def stop(self) -> None:
        self._under_way.clear()

    def links(self) -> Mapping[str, Iterable[str]]:
        """Whom each device has to be connected with for it."""
        peers: dict[str, set[str]] = {}
        for a, b in self._blocks:
            peers.setdefault(a, set()).add(b)
            peers.setdefault(b, set()).add(a)
        return peers

    @property
    def under_way(self) -> bool:
        """Whether a round is not done yet."""
        return bool(self._under_way)

    def involves(self, device: str) -> bool:
        return any(device in way for way in self._blocks)

    def nearly_done(self) -> bool:
        """Whether so little is left that nothing need be fed until it is copied."""
        left = sum(
            max(history.fed - self._sent.get((number, source), 0), 0)
            for source in {source for source, _ in self._blocks}
            for number, history in self._feeding.histories.items()
        )
        return left <= FEW_TOKENS * max(len(self._feeding.histories), 1) or self._rounds >= MOST_ROUNDS

    def begin_round(self, last: bool = False) -> bool:
        """Have sent what was computed since the last round; whether there is any. `last`: nothing is under way, so
        all that was fed is computed."""
        sources = {source for source, _ in self._blocks}
        spans = {
            (number, source): (
                self._sent.get((number, source), 0),
                history.fed if last else self._feeding.progress.reached(source, number),
            )
            for number, history in self._feeding.histories.items()
            for source in sources
        }
        for (source, destination), blocks in self._blocks.items():
            rows = [
                CacheRows(number, block, start, stop)
                for (number, owner), (start, stop) in spans.items()
                if owner == source and start < stop
                for block in blocks
            ]
            if rows:
                self._number += 1
                self._under_way.add(self._number)
                self.moved_bytes += sum(self._bytes(destination, each) for each in rows)
                self._cluster.tell(source, Copy(self._number, destination, tuple(rows)))
        self._sent |= {key: max(start, stop) for key, (start, stop) in spans.items()}
        self._rounds += bool(self._under_way)
        return bool(self._under_way)

    def copied(self, transfer: int) -> bool:
        """A transfer is there; whether it was the last of its round."""
        if transfer not in self._under_way:
            return False
        self._under_way.discard(transfer)
        return not self._under_way

    def _bytes(self, device: str, rows: CacheRows) -> int:
        held = self._cluster.record.envelope.devices[device].blocks
        each = next(block for block in held if block.id == rows.block)
        return each.cache_bytes * (rows.stop - rows.start) // self._cluster.record.model.shapes.context
