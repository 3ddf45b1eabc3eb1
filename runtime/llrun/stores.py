"""What a device holds: blocks (their weights, as arguments) and sequences (their caches, by block)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llrun.memory import Array, carve
from llrun.schema import BlockEntry

MAX_SEQUENCES = 64
Wrap = Callable[[Array], Any]


@dataclass(frozen=True)
class Block:
    """`params`: the weights as its functions' arguments, in order."""

    entry: BlockEntry
    params: tuple[Any, ...]


@dataclass
class StepState:
    """One chunk or token of a sequence under way on this device. `values`: tensors by id. `cursor`: next
    segment."""

    position: int
    rows: int
    flags: int
    values: dict[int, Any]
    cursor: int = 0


@dataclass
class Sequence:
    """`caches`: arguments by block, made when first used. `frontier`: for each segment the position it
    runs next. `steps`: by position."""

    frontier: list[int]
    caches: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    steps: dict[int, StepState] = field(default_factory=dict)


class SequenceStore:
    """Sequences by number. Memory of a cache is taken page by page as positions are written."""

    def __init__(self, blocks: Mapping[int, Block], wrap: Wrap, segments: int) -> None:
        self._blocks = blocks
        self._wrap = wrap
        self._segments = segments
        self._open: dict[int, Sequence] = {}
        self._newest = -1

    def open(self, number: int) -> bool:
        """Make room for a sequence; False when there are too many or the number was used before."""
        if number <= self._newest or len(self._open) >= MAX_SEQUENCES:
            return False
        self._newest = number
        self._open[number] = Sequence([0] * self._segments)
        return True

    def close(self, number: int) -> None:
        self._open.pop(number, None)

    def get(self, number: int) -> Sequence | None:
        return self._open.get(number)

    def was_closed(self, number: int) -> bool:
        return number <= self._newest and number not in self._open

    def caches(self, sequence: Sequence, block: int) -> tuple[Any, ...]:
        found = sequence.caches.get(block)
        if found is None:
            specs = [(cache.shape, cache.dtype) for cache in self._blocks[block].entry.caches]
            found = tuple(self._wrap(array) for array in carve(specs)) if specs else ()
            sequence.caches[block] = found
        return found
