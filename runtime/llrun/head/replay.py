"""Where each sequence goes on after a loss: pure functions of what the surviving caches hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llrun.head.history import History
from llrun.schema import StageRecord
from llrun.wire.messages import Held, Places

Kept = Mapping[str, Mapping[int, Mapping[int, int]]]  # device -> sequence -> block -> tokens in its caches


@dataclass(frozen=True)
class Rewind:
    """A sequence's way back into step. `stages`: for each stage the position where it goes on; none is later than a
    later stage's. `start`: the first position that is fed again; `again`: how many are that some stage had computed."""

    sequence: int
    stages: tuple[int, ...]
    start: int
    again: int

    @property
    def reached(self) -> int:
        """The furthest position of any stage: what is fed below it is a replay."""
        return max(self.stages, default=0)


def rewind(
    number: int,
    history: History,
    stages: Sequence[StageRecord],
    cached: Mapping[str, Iterable[int]],
    kept: Kept,
) -> Rewind:
    """Where `history`, sequence `number`, goes on in `stages`.

    A stage goes on where its caches end, but no later than any stage after it: that one needs what this one makes.
    Stages without caches need nothing but the rows that are awaited. `cached`: for each device the blocks whose caches
    are to be looked at; `kept`: what they hold.
    """
    furthest = _furthest(history, stages, cached, kept, number)
    positions: list[int] = []
    least = furthest
    for stage in reversed(stages):
        blocks = set(range(*stage.blocks)) & set(cached.get(stage.lead, ()))
        held = kept.get(stage.lead, {}).get(number, {})
        least = min([least, *(held.get(block, 0) for block in blocks)])
        positions.append(least)
    positions.reverse()
    return Rewind(number, tuple(positions), least, max(min(history.fed, _limit(history)) - least, 0))


def _furthest(
    history: History,
    stages: Sequence[StageRecord],
    cached: Mapping[str, Iterable[int]],
    kept: Kept,
    number: int,
) -> int:
    """Where stages without caches go on: as far as any cache holds, but not beyond the first row that is awaited."""
    most = 0
    for stage in stages:
        held = kept.get(stage.lead, {}).get(number, {})
        mine = [held.get(b, 0) for b in set(range(*stage.blocks)) & set(cached.get(stage.lead, ()))]
        most = max([most, *mine])
    if not any(True for blocks in cached.values() for _ in blocks):
        most = history.fed  # no block has a cache: nothing is lost but what was under way
    return min(most, history.fed, _limit(history))


def _limit(history: History) -> int:
    return history.queued if history.awaited is None else history.awaited


def places_of(rewinds: Iterable[Rewind], stages: Sequence[StageRecord], device: str) -> tuple[Places, ...]:
    """What `device` is told: for each sequence a position for each of its stages."""
    mine = [index for index, stage in enumerate(stages) if stage.lead == device]
    return tuple(Places(each.sequence, tuple(each.stages[index] for index in mine)) for each in rewinds)


def by_block(held: Iterable[Held]) -> dict[int, dict[int, int]]:
    """What a device's caches hold: tokens by sequence and block."""
    found: dict[int, dict[int, int]] = {}
    for each in held:
        found.setdefault(each.sequence, {}).update(dict.fromkeys(range(each.start, each.stop), each.tokens))
    return found
