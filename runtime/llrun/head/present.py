"""What a session does now, for people to look at: one frozen value, made without waiting for anything."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

from llrun.head.changes import Changes
from llrun.head.cluster import Cluster
from llrun.head.moves import Move
from llrun.schema import StageRecord
from llrun.wire.messages import StepDone

SHOWN_MOVES = 20
Pass = tuple[StepDone, ...]


@dataclass(frozen=True)
class Present:
    """`alive`: the devices that take part, the head among them. `tokens`: that have come since the session began, at
    `at_s` by time.monotonic. `moves`: the newest changes of stages. `passes`: of each device, what it did last of
    single tokens, the oldest first; the steps of a pass are of several sequences."""

    alive: frozenset[str]
    stages: tuple[StageRecord, ...]
    epoch: int
    tokens: int
    at_s: float
    moves: tuple[Move, ...]
    passes: Mapping[str, tuple[Pass, ...]]


def present_of(cluster: Cluster, changes: Changes) -> Present:
    moves = islice(reversed(changes.moves), SHOWN_MOVES)
    return Present(
        alive=frozenset(cluster.alive),
        stages=cluster.stages,
        epoch=cluster.epoch,
        tokens=changes.tokens,
        at_s=time.monotonic(),
        moves=tuple(reversed(list(moves))),
        passes={name: tuple(samples.passes) for name, samples in cluster.monitor.devices.items()},
    )
