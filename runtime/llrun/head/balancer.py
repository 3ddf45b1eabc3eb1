"""Gives the balancing function its turn, away from the path of tokens, and begins what it asks for."""

from __future__ import annotations

from llrun.head.changes import Changes
from llrun.head.cluster import Cluster
from llrun.head.controls import Note
from llrun.head.feeding import Feeding
from llrun.head.options import Balancing


class Balancer:
    """Placeholder until the hook is there."""

    def __init__(
        self, cluster: Cluster, changes: Changes, feeding: Feeding, balancing: Balancing, note: Note
    ) -> None:
        pass

    def turn(self, now: float) -> None:
        pass

    def close(self) -> None:
        pass
