"""Where each sequence goes on after a loss: pure functions of what the surviving caches hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llrun.head.history import History
from llrun.programs.groups import block_of, held_ids
from llrun.programs.moving import recut
from llrun.programs.segments import first_stages
from llrun.schema import DeviceProgram, StageRecord
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

    A stage goes on where its caches end, a group's where the least of them does, but no later than any stage after it:
    that one needs what this one makes. Stages without caches need nothing but the rows that are awaited. `cached`: for
    each device the blocks, or pieces of them, whose caches are to be looked at; `kept`: what they hold.
    """
    furthest = _furthest(history, stages, cached, kept, number)
    positions: list[int] = []
    least = furthest
    for stage in reversed(stages):
        least = min([least, *_held(stage, stages, cached, kept, number)])
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
        most = max([most, *_held(stage, stages, cached, kept, number)])
    if not any(True for blocks in cached.values() for _ in blocks):
        most = history.fed  # no block has a cache: nothing is lost but what was under way
    return min(most, history.fed, _limit(history))


def _held(
    stage: StageRecord,
    stages: Sequence[StageRecord],
    cached: Mapping[str, Iterable[int]],
    kept: Kept,
    number: int,
) -> list[int]:
    """How many tokens each cache of a stage holds."""
    ids = held_ids(stage, stages[-1].blocks[1])
    return [
        kept.get(name, {}).get(number, {}).get(piece, 0)
        for name in stage.devices
        for piece in cached.get(name, ())
        if piece in ids
    ]


def after_move(
    number: int,
    history: History,
    before: Sequence[StageRecord],
    after: Sequence[StageRecord],
    cached: Mapping[str, Iterable[int]],
) -> Rewind:
    """Where a sequence goes on once stages have changed while nothing was under way: at its end, but for what a group
    computed or is to compute now, and what comes before that."""
    count, again = after[-1].blocks[1], recut(before, after)
    anew = {
        index
        for index, stage in enumerate(after)
        for name in stage.devices
        for piece in cached.get(name, ())
        if piece in held_ids(stage, count) and block_of(piece, count) in again
    }
    last = max(anew, default=-1) if history.fed else -1
    places = tuple(0 if index <= last else history.fed for index in range(len(after)))
    return Rewind(number, places, places[0], history.fed - places[0])


def parts_of(stages: Sequence[StageRecord]) -> dict[str, list[int]]:
    """[device]: the numbers of the stages that it has a part in."""
    found: dict[str, list[int]] = {}
    for number, stage in enumerate(stages):
        for name in stage.devices:
            found.setdefault(name, []).append(number)
    return found


def _limit(history: History) -> int:
    return history.queued if history.awaited is None else history.awaited


def places_of(
    rewinds: Iterable[Rewind], stages: Sequence[StageRecord], program: DeviceProgram
) -> tuple[Places, ...]:
    """What the device of `program` is told: for each sequence a position for each of its segments, that of the stage
    that the segment begins in."""
    firsts = first_stages(program.instructions, stages)
    return tuple(Places(each.sequence, tuple(each.stages[stage] for stage in firsts)) for each in rewinds)


def by_block(held: Iterable[Held]) -> dict[int, dict[int, int]]:
    """What a device's caches hold: tokens by sequence and block."""
    found: dict[int, dict[int, int]] = {}
    for each in held:
        found.setdefault(each.sequence, {}).update(dict.fromkeys(range(each.start, each.stop), each.tokens))
    return found
