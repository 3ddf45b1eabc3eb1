"""Blocks that stream: read ahead of their use into a ring of places, by threads that run beside the kernels."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Protocol

from llrun.device.streaming import PAGE, Memory
from llrun.errors import INTERNAL, RunError
from llrun.memory import Array, Stretch
from llrun.programs.ring import Places

STALL_S = 120.0  # without a piece of 4 MiB: a card that has given up takes 30 s to say so


class Streamed(Protocol):
    """A block's file, as StreamedFile."""

    @property
    def size_bytes(self) -> int: ...
    @property
    def name(self) -> str: ...
    def arrays(self, memory: Memory) -> tuple[Array, ...]: ...
    def read(self, memory: Memory) -> Iterator[tuple[int, Memory]]: ...
    def sum(self, piece: Memory) -> int: ...
    def check(self, start: int, value: int) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Streams:
    """Files of blocks in the order in which they run, where each lies in `memory`, checked once."""

    files: Mapping[int, Streamed]
    places: Places
    memory: Stretch


@dataclass(eq=False)
class _Held:
    """A block in its place: being read, `ready`, or not to be had for `failure`. `position`: in the order of places.
    `wanted`: it is to run."""

    position: int
    block: int
    memory: Memory
    start: int
    ready: bool = False
    wanted: bool = True
    failure: RunError | None = None


class Window:
    """The blocks of `streams`, of which those that the device needs are read one after the other, in a circle.

    The engine's thread takes a block for the time of a call. What comes after it is read meanwhile, as far as there
    is room beside what waits to be used; after the last block comes the first, so a device that waits for others
    reads. Another thread looks at what was read, while the next piece comes. Whoever takes a block out of the order,
    as one whose sequence is at another place, has those given up that were read for nothing.
    """

    def __init__(self, streams: Streams, wrap: Callable[[Array], Any]) -> None:
        self._files = streams.files
        self._order = tuple(streams.files)
        self._places = streams.places
        self._memory = streams.memory
        # Made now: small objects that stay, made among a prompt's large ones that go, would keep the heap from
        # shrinking (by 70 MB, with a chunk of 128 tokens in float32).
        self._params = {
            (block, memory.start): tuple(map(wrap, streams.files[block].arrays(streams.memory.bytes[memory])))
            for block, memory in map(self._place, range(len(self._places.starts)))
        }
        self._state = threading.Condition()
        self._active: frozenset[int] = frozenset()
        self._ahead: deque[_Held] = deque()
        self._using: _Held | None = None
        self._next = 0
        self._pieces = 0
        self._closed = False
        self._read: SimpleQueue[tuple[_Held, int, Memory | None] | None] = SimpleQueue()
        for name, target in (("window", self._read_ahead), ("window sums", self._look)):
            threading.Thread(target=target, name=name, daemon=True).start()

    @property
    def blocks(self) -> frozenset[int]:
        """All that may stream."""
        return frozenset(self._order)

    def use(self, blocks: Collection[int]) -> None:
        """Read these of the blocks from now on, and no others."""
        with self._state:
            active = frozenset(blocks) & self.blocks
            if active != self._active:
                self._active = active
                self._forget()
                self._state.notify_all()

    def restart(self) -> None:
        """Read anew, whatever went wrong before."""
        with self._state:
            self._using = None
            self._forget()
            self._state.notify_all()

    def close(self) -> None:
        """End the threads, and with them let go of the files and the memory."""
        with self._state:
            self._closed = True
            self._forget()
            self._state.notify_all()

    def take(self, block: int) -> tuple[Any, ...]:
        """The arguments of a block's functions, in their places until `done`. Waits until it has been read.

        Raises RunError R201 where it cannot be read, R209 where its file is not what it was.
        """
        with self._state:
            self._using = None
            if all(held.block != block for held in self._ahead):
                self._forget()
                self._next = self._position(block, self._next)
            while self._ahead and self._ahead[0].block != block:
                self._ahead.popleft().wanted = False  # a prompt's early chunks pass by some
            self._state.notify_all()
            while not (self._ahead and self._ahead[0].ready):
                self._wait(block)
            held = self._using = self._ahead.popleft()
        return self._params[block, held.start]

    def done(self) -> None:
        """The block that was taken has run: its place is free."""
        with self._state:
            self._using = None
            self._state.notify_all()

    def _wait(self, block: int) -> None:
        """Wait for anything new. Raises RunError where the block, which is next, will not come."""
        if self._ahead and self._ahead[0].failure:
            raise self._ahead[0].failure
        pieces = self._pieces
        if not self._state.wait(STALL_S) and pieces == self._pieces:
            raise RunError(
                "R201", f"cannot read {self._files[block].name}: nothing came in {STALL_S:g} s", INTERNAL
            )

    def _forget(self) -> None:
        """Give up what was read ahead; the first of it is read next."""
        if self._ahead:
            self._next = self._ahead[0].position
        for held in self._ahead:
            held.wanted = False
        self._ahead.clear()

    def _place(self, position: int) -> tuple[int, slice]:
        """The block of a position, and the pages of the memory that are its place there."""
        block, start = self._order[position % len(self._order)], self._places.starts[position]
        return block, slice(start, start + -(-self._files[block].size_bytes // PAGE) * PAGE)

    def _position(self, block: int, since: int) -> int:
        """The first place of `block` from position `since` on."""
        behind = (self._order.index(block) - since) % len(self._order)
        return (since + behind) % len(self._places.starts)

    # --- the threads that read and look ---

    def _read_ahead(self) -> None:
        while held := self._begin():
            try:
                for start, piece in self._files[held.block].read(held.memory):
                    self._read.put((held, start, piece))
                    self._pieces += 1
                    if not held.wanted:
                        break
                self._read.put((held, 0, None))
            except RunError as error:
                self._fail(held, error)
        self._read.put(None)
        for file in self._files.values():
            file.close()

    def _begin(self) -> _Held | None:
        """The next block, once it is known and there is room for it; None when there is none to come."""
        with self._state:
            while (held := self._to_read()) is None and not self._closed:
                self._state.wait()
            if held:
                self._ahead.append(held)
                self._next = (held.position + 1) % len(self._places.starts)
            return held

    def _to_read(self) -> _Held | None:
        """The next block, where it is known and there is room for it."""
        if self._closed or not self._active or any(held.failure for held in self._ahead):
            return None
        count = len(self._order)
        while self._order[self._next % count] not in self._active:
            self._next = (self._next + 1) % len(self._places.starts)
        block, memory = self._place(self._next)
        for held in (*self._ahead, *([self._using] if self._using else [])):
            if held.block == block or (
                memory.start < held.start + len(held.memory) and held.start < memory.stop
            ):
                return None
        return _Held(self._next, block, self._memory.bytes[memory], memory.start)

    def _look(self) -> None:
        """Compare what was read with what it was. What nobody wants may be written over by now, and says nothing."""
        while found := self._read.get():
            held, start, piece = found
            if piece is None:
                with self._state:
                    held.ready = held.wanted and not held.failure
                    self._state.notify_all()
                continue
            value = self._files[held.block].sum(piece)
            if held.wanted:
                try:
                    self._files[held.block].check(start, value)
                except RunError as error:
                    self._fail(held, error)

    def _fail(self, held: _Held, error: RunError) -> None:
        with self._state:
            held.failure = error
            self._state.notify_all()
