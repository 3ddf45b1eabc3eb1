"""What a device holds of sequences: their steps under way, and their caches, by block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

from llrun.device.load import Block
from llrun.errors import INTERNAL, RunError
from llrun.memory import Array, empty, reserve_slots

MAX_SEQUENCES = 64
Wrap = Callable[[Array], Any]


@dataclass(eq=False)
class StepState:
    """One chunk or token of a sequence under way on this device. `values`: tensors by id. `cursor`: next
    segment. `queued`: that one is to run as soon as may be. `compute_s`, `wait_s`, `sent_bytes`: what the step
    has cost this device."""

    sequence: Sequence
    position: int
    rows: int
    flags: int
    values: dict[int, Any] = field(default_factory=dict)
    cursor: int = 0
    queued: bool = False
    compute_s: float = 0.0
    wait_s: float = 0.0
    sent_bytes: int = 0


@dataclass(eq=False)
class Sequence:
    """`slot`: where its caches are; `slots`: that as an argument, int64 (1,). `frontier`: for each segment the
    position it runs next. `steps`: by position."""

    number: int
    slot: int
    slots: Any
    frontier: list[int]
    steps: dict[int, StepState] = field(default_factory=dict)


class SequenceStore:
    """Sequences by number, and the caches of all `blocks`: arrays of slots, of which every sequence has one.

    Memory of a slot is taken page by page as positions are written, so a block that does not run takes none, and
    given back when its sequence closes. Raises RunError R503 when not even one slot can be reserved.
    """

    def __init__(self, blocks: Mapping[int, Block], wrap: Wrap) -> None:
        self._wrap = wrap
        self._segments = 0
        self._running: frozenset[int] = frozenset()
        self._open: dict[int, Sequence] = {}
        self._newest = -1
        specs = {id: [(c.shape, c.dtype) for c in block.entry.caches] for id, block in blocks.items()}
        try:
            self._slots = reserve_slots({id: each for id, each in specs.items() if each}, MAX_SEQUENCES)
        except OSError as error:
            reason = f"this system has no room for the cache of a single sequence: {error}"
            raise RunError("R503", reason + ". Build with a smaller --context", INTERNAL) from error
        self._caches = {id: tuple(map(wrap, slots.arrays)) for id, slots in self._slots.items()}
        self.capacity = min((slots.count for slots in self._slots.values()), default=MAX_SEQUENCES)
        self._free = list(range(self.capacity))

    def caches(self, block: int) -> tuple[Any, ...]:
        """Arguments of a block's functions: (slots, ...) each; none for a block without caches."""
        return self._caches.get(block, ())

    # --- programs ---

    @property
    def idle(self) -> bool:
        """Whether no sequence has a step under way."""
        return not any(sequence.steps for sequence in self._open.values())

    def prepare(self, blocks: Iterable[int], segments: int, positions: Mapping[int, int]) -> None:
        """Get ready for a program that runs `blocks` in so many segments; every open sequence goes on at its place
        in `positions`, 0 where none is given.

        What the caches hold stays for blocks that ran before, and is given up for those that run no more. Raises
        RunError R402 for a sequence of which a block here has computed fewer tokens than that.
        """
        running = frozenset(blocks) & self._slots.keys()
        for number, sequence in self._open.items():
            self._check(sequence, running, positions.get(number, 0))
        for number, sequence in self._open.items():
            for block in self._running - running:
                self._slots[block].discard(sequence.slot)
            sequence.frontier = [positions.get(number, 0)] * segments
        self._running, self._segments = running, segments

    def _check(self, sequence: Sequence, running: frozenset[int], position: int) -> None:
        number, reached = sequence.number, max(sequence.frontier, default=0)
        for block in sorted(running):
            computed = reached if block in self._running else 0
            if position > computed:
                raise RunError(
                    "R402",
                    f"sequence {number} cannot go on at {position}: block {block} has computed {computed} of its"
                    " tokens here. Feed it from its start",
                    INTERNAL,
                )

    # --- sequences ---

    def open(self, number: int) -> str | None:
        """Make room for a sequence; why there is none: too many are open, or the number was used before."""
        if number <= self._newest:
            return f"sequence {number} is not newer than sequence {self._newest}"
        self._newest = number
        if not self._free:
            return f"{self.capacity} sequences are open, and there is room for no more"
        slot = heappop(self._free)  # the lowest: its page tables are there already
        slots = empty((1,), "int64")
        slots[0] = slot
        self._open[number] = Sequence(number, slot, self._wrap(slots), [0] * self._segments)
        return None

    def close(self, number: int) -> None:
        sequence = self._open.pop(number, None)
        if sequence is not None:
            for slots in self._slots.values():
                slots.discard(sequence.slot)
            heappush(self._free, sequence.slot)

    def get(self, number: int) -> Sequence | None:
        return self._open.get(number)

    @property
    def numbers(self) -> frozenset[int]:
        """The sequences that are open."""
        return frozenset(self._open)

    def was_closed(self, number: int) -> bool:
        return number <= self._newest and number not in self._open
