"""Splits a program into segments: what runs as one as soon as the tensors it waits for are there."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Several
from dataclasses import dataclass, replace
from typing import assert_never

from llrun.programs.effects import effects
from llrun.programs.groups import block_of
from llrun.schema import Instruction, Load, Receive, Release, Run, Send, StageRecord

Work = Run | Send | Release  # the instructions of a segment


@dataclass(frozen=True)
class Segment:
    """`waits`: tensors to have first; `waits_last`: those that only a prompt's last chunk brings.

    `instructions`: in order. A segment of the program's start may wait for nothing.
    """

    waits: frozenset[int]
    waits_last: frozenset[int]
    instructions: tuple[Work, ...]

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks, or pieces of them, that it runs, in order."""
        done = [effects(each).runs for each in self.instructions]
        return tuple(block for block in done if block is not None)


def split(instructions: Iterable[Instruction]) -> tuple[Segment, ...]:
    """The segments of a program: one begins at each receive that follows another kind of instruction."""
    segments: list[Segment] = []
    waits: set[int] = set()
    work: list[Work] = []
    for instruction in instructions:
        match instruction:
            case Load():
                pass  # done before the first step
            case Receive():
                if work:
                    segments.append(_segment(waits, work))
                    waits, work = set(), []
                waits.add(instruction.tensor)
            case Run() | Send() | Release():
                work.append(instruction)
            case _:
                assert_never(instruction)
    if work or waits:
        segments.append(_segment(waits, work))
    return _only_last(tuple(segments))


def first_stages(instructions: Iterable[Instruction], stages: Several[StageRecord]) -> tuple[int, ...]:
    """[segment]: the number of the stage that it begins in, of all the model's `stages`. A device has one segment a
    stage, of a group's several; where nothing has to be received between two stages they share one."""
    count = stages[-1].blocks[1] if stages else 0
    number_of = {block: number for number, stage in enumerate(stages) for block in range(*stage.blocks)}
    found, newest = list[int](), 0
    for segment in split(instructions):
        numbers = [number_of[block_of(piece, count)] for piece in segment.blocks]
        # One that runs no block sums, or passes a sum on, for the newest block before.
        found.append(min(numbers, default=newest))
        newest = max(numbers, default=newest)
    return tuple(found)


def _segment(waits: set[int], work: list[Work]) -> Segment:
    return Segment(frozenset(waits), frozenset(), tuple(work))


def _only_last(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """Mark received tensors that only instructions for the newest row use: earlier chunks do without them."""
    done = [effects(each) for segment in segments for each in segment.instructions]
    every = {tensor for each in done if not each.newest_row for tensor in each.uses}
    return tuple(replace(segment, waits_last=segment.waits - every) for segment in segments)
