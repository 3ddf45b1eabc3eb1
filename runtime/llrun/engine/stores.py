"""What a device holds of sequences: their steps under way, and their caches, by block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Several
from dataclasses import dataclass, field
from heapq import heappop, heappush
from threading import Lock
from typing import Any

from llrun.errors import INTERNAL, RunError
from llrun.memory import Array, empty, reserve_slots
from llrun.schema import BlockEntry
from llrun.wire.messages import Held
from llrun.wire.protocol import DRAFTS, ProtocolError

MAX_SEQUENCES = 64
Wrap = Callable[[Array], Any]


@dataclass(eq=False)
class StepState:
    """One chunk or token of a sequence under way on this device. `values`: tensors by id. `cursor`: next
    segment. `queued`: that one is to run as soon as may be. `compute_s`, `wait_s`, `sent_bytes`, `send_s`: what the
    step has cost this device; `runs`: of `compute_s`, that of each segment up to here, where there are few."""

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
    send_s: float = 0.0
    runs: tuple[float, ...] = ()


@dataclass(eq=False)
class Sequence:
    """`slot`: where its caches are; `slots`: that as an argument, int64 (1,). `frontier`: for each segment the
    position it runs next. `drafted`: for each segment the end of what it computed of guesses, 0 where there are none.
    `steps`: by position. `filled`: of blocks that do not run here, how many of the sequence's
    first tokens their caches hold."""

    number: int
    slot: int
    slots: Any
    frontier: list[int]
    drafted: list[int]
    steps: dict[int, StepState] = field(default_factory=dict)
    filled: dict[int, int] = field(default_factory=dict)

    def ran(self, segment: int, step: StepState) -> None:
        """A segment has computed a step: of guesses the first token alone is the sequence's."""
        stop = step.position + step.rows
        drafts = bool(step.flags & DRAFTS)
        self.frontier[segment] = step.position + 1 if drafts else stop
        self.drafted[segment] = stop if drafts else 0

    def keep(self, segment: int, position: int) -> None:
        """The guesses before `position` were right. Raises ProtocolError where they are not there."""
        if self.frontier[segment] < position:
            if self.drafted[segment] < position:
                raise ProtocolError(
                    f"sequence {self.number} goes on at {position}, segment {segment} has nothing from"
                    f" {max(self.frontier[segment], self.drafted[segment])} on"
                )
            self.frontier[segment] = position


class SequenceStore:
    """Sequences by number, and the caches of `entries`, all blocks of the slice: arrays of slots, of which every
    sequence has one.

    Memory of a slot is taken page by page as positions are written, so a block that does not run takes none, and
    given back when its sequence closes. A block's caches hold what it has computed, or, where it does not run, what
    was copied here from where it does (`fill`).

    `entries`: by id. The engine's thread alone calls what is not said to be safe from others. `lock` is held while
    sequences and programs come and go, and by others while they read or write rows, for some 50 us: so no slot
    becomes another sequence's under their hands. Raises RunError R503 when not even one slot can be reserved.
    """

    def __init__(self, entries: Iterable[BlockEntry], wrap: Wrap) -> None:
        self.lock = Lock()
        self._wrap = wrap
        self.entries = {entry.id: entry for entry in entries}
        self._segments: tuple[tuple[int, ...], ...] = ()
        self._segment_of: dict[int, int] = {}
        self._open: dict[int, Sequence] = {}
        self._newest = -1
        specs = {id: [(c.shape, c.dtype) for c in entry.caches] for id, entry in self.entries.items()}
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

    def prepare(self, segments: Several[Several[int]], positions: Mapping[int, Several[int]]) -> None:
        """Get ready for a program whose segments run these blocks; every open sequence goes on in each segment at its
        place in `positions`, 0 where none is given.

        What the caches hold stays for blocks that run then; of all others it is given up. Raises
        RunError R402 for a sequence of which a block here holds fewer tokens than come before its place.
        """
        cached = tuple(tuple(block for block in each if block in self._slots) for each in segments)
        following = {
            number: _places(sequence, cached, positions.get(number), self.counts(sequence))
            for number, sequence in self._open.items()
        }
        running = {block: index for index, each in enumerate(cached) for block in each}
        with self.lock:
            for number, sequence in self._open.items():
                for block in self.counts(sequence).keys() - running.keys():
                    self._slots[block].discard(sequence.slot)
                sequence.filled = {}
                sequence.frontier = following[number]
                sequence.drafted = [0] * len(segments)
            self._segments, self._segment_of = cached, running

    # --- what the caches hold ---

    def counts(self, sequence: Sequence) -> dict[int, int]:
        """How many of a sequence's first tokens the caches hold of each block that runs or was copied here."""
        counts = {block: sequence.frontier[index] for block, index in self._segment_of.items()}
        return counts | sequence.filled

    def held(self) -> tuple[Held, ...]:
        """What the caches hold of each open sequence, blocks side by side that hold as many tokens joined."""
        found: list[Held] = []
        for number, sequence in sorted(self._open.items()):
            last, counts = None, self.counts(sequence)
            for block in sorted(self.entries):
                if block not in self._slots:
                    continue
                tokens = counts.get(block, 0)
                side_by_side = last is not None and all(id in self.entries for id in range(last, block))
                if side_by_side and found[-1].sequence == number and found[-1].tokens == tokens:
                    found[-1] = Held(number, found[-1].start, block + 1, tokens)
                else:
                    found.append(Held(number, block, block + 1, tokens))
                last = block
        return tuple(each for each in found if each.tokens)

    def tokens(self, block: int) -> dict[int, int]:
        """How many first tokens of each open sequence the caches of `block` hold. `lock` is held by who calls."""
        index = self._segment_of.get(block)
        return {
            number: sequence.filled.get(block, 0) if index is None else sequence.frontier[index]
            for number, sequence in self._open.items()
        }

    def slot_arrays(self, number: int, block: int) -> list[Array]:
        """The caches of `block` of an open sequence, without the axis of slots. `lock` is held by who calls."""
        slot = self._open[number].slot
        return [array[slot] for array in self._slots[block].arrays]

    def admit(self, number: int, block: int) -> int | None:
        """How many first tokens of a sequence were copied here for a block that does not run; None where no more of
        them are wanted, as the sequence was closed or the block runs by now. `lock` is held by who calls. Raises
        ProtocolError for a sequence that was never opened, and a block without caches here."""
        if block not in self._slots:
            raise ProtocolError(f"cache rows of block {block}, which has no caches here")
        sequence = self._open.get(number)
        if sequence is None and not self.was_closed(number):
            raise ProtocolError(f"cache rows of sequence {number}, which was never opened")
        if sequence is None or block in self._segment_of:
            return None
        return sequence.filled.get(block, 0)

    def fill(self, number: int, block: int, start: int, stop: int) -> int:
        """Note that rows of a block that does not run here were written; returns how many first tokens it holds.

        `lock` is held by who calls. Raises ProtocolError for rows before which some are missing, or that were not to
        be admitted."""
        filled = self.admit(number, block)
        if filled is None or start > filled:
            raise ProtocolError(f"rows from {start} on of block {block}, sequence {number}, cannot be here")
        self._open[number].filled[block] = max(filled, stop)
        return max(filled, stop)

    # --- sequences ---

    def open(self, number: int, after: int | None = None, tokens: int = 0) -> str | None:
        """Make room for a sequence; why there is none: too many are open, or the number was used before.

        `after`: an open sequence that is closed by this, whose caches it takes over as far as its first `tokens`; a
        reason, too, where they do not hold as many. One that was never here is none where no block with caches runs.
        """
        if number <= self._newest:
            return f"sequence {number} is not newer than sequence {self._newest}"
        self._newest = number
        earlier = self._open.get(after) if after is not None else None
        if earlier is not None:
            return self._take_over(number, earlier, tokens)
        if after is not None and self._segment_of:
            return f"sequence {after}, which it goes on from, is not here"
        if not self._free:
            return f"{self.capacity} sequences are open, and there is room for no more"
        slot = heappop(self._free)  # the lowest: its page tables are there already
        slots = empty((1,), "int64")
        slots[0] = slot
        with self.lock:
            self._open[number] = Sequence(
                number, slot, self._wrap(slots), [0] * len(self._segments), [0] * len(self._segments)
            )
        return None

    def _take_over(self, number: int, earlier: Sequence, tokens: int) -> str | None:
        counts = self.counts(earlier)
        least = min((counts[block] for block in self._segment_of), default=tokens)
        if earlier.steps or least < tokens:
            self.close(earlier.number)
            return (
                f"sequence {earlier.number} holds {least} tokens here, and is to be gone on from at {tokens}"
            )
        filled = {block: min(count, tokens) for block, count in earlier.filled.items()}
        with self.lock:
            del self._open[earlier.number]
            count = len(self._segments)
            places = [tokens] * count, [0] * count
            self._open[number] = Sequence(number, earlier.slot, earlier.slots, *places, filled=filled)
        return None

    def close(self, number: int) -> None:
        with self.lock:
            sequence = self._open.pop(number, None)
            if sequence is not None:
                for block in self.counts(sequence):
                    self._slots[block].discard(sequence.slot)
                heappush(self._free, sequence.slot)

    def close_all(self) -> None:
        """Give the memory of every sequence back."""
        for number in self.numbers:
            self.close(number)

    def get(self, number: int) -> Sequence | None:
        return self._open.get(number)

    @property
    def several(self) -> bool:
        """Whether more than one sequence is open."""
        return len(self._open) > 1

    @property
    def numbers(self) -> frozenset[int]:
        """The sequences that are open."""
        return frozenset(self._open)

    def was_closed(self, number: int) -> bool:
        return number <= self._newest and number not in self._open


def _places(
    sequence: Sequence,
    segments: Several[Several[int]],
    places: Several[int] | None,
    counts: Mapping[int, int],
) -> list[int]:
    """Where `sequence` goes on in each segment. Raises RunError R402."""
    places = [0] * len(segments) if places is None else list(places)
    if len(places) != len(segments):
        raise RunError(
            "R402",
            f"sequence {sequence.number} is to go on in {len(places)} segments, the program has {len(segments)}",
            INTERNAL,
        )
    for place, blocks in zip(places, segments, strict=True):
        for block in blocks:
            if place > counts.get(block, 0):
                raise RunError(
                    "R402",
                    f"sequence {sequence.number} cannot go on at {place}: the cache of block {block} holds"
                    f" {counts.get(block, 0)} of its tokens here. Feed it from its start",
                    INTERNAL,
                )
    return places
