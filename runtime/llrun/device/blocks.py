"""What of a slice's blocks is in memory: read when they are to run, given back when they are not.

Blocks that stream count as being there: a window reads them for each call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol
from weakref import finalize

from llrun.device.headroom import check_change, check_reading
from llrun.device.lookups import Lookup
from llrun.device.table import Table
from llrun.device.window import Streams, Window
from llrun.errors import INTERNAL, RunError
from llrun.memory import Array
from llrun.programs.effects import all_effects
from llrun.schema import BlockEntry, Slice

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Block:
    """`params`: the weights as its functions' arguments, in order; `window` has them where the block streams."""

    entry: BlockEntry
    params: tuple[Any, ...]
    window: Window | None = None


@dataclass(frozen=True)
class Read:
    """A block's arrays in memory, in the order of its params. `give_back`: returns the memory to the system.
    `table`: where rows of them are read by token."""

    arrays: tuple[Array, ...]
    give_back: Callable[[], None]
    table: Table | None = None


class Reader(Protocol):
    """Where blocks come from."""

    def memory_bytes(self, block: int) -> int:
        """What the block's weights take in memory of their own."""

    def read(self, blocks: Sequence[int], progress: Progress) -> dict[int, Read]:
        """All of these, or none: then RunError. `progress`: bytes read, bytes in all; what it raises ends it."""


class Resident(Mapping[int, Block]):
    """The blocks that are in memory, by id: a view, which changes as blocks are read and dropped."""

    def __init__(self, store: BlockStore) -> None:
        self._store = store

    def __getitem__(self, block: int) -> Block:
        return self._store.blocks[block]

    def __iter__(self) -> Iterator[int]:
        return iter(self._store.blocks)

    def __len__(self) -> int:
        return len(self._store.blocks)


class BlockStore:
    """Blocks of one slice, in memory as they are needed. `resident`: those that are.

    Blocks may be read on one thread while another runs those that are there: they come to be resident all at once,
    when the last is read. `read`: those to begin with. `streams`: those that are never all in memory.
    """

    def __init__(
        self,
        record: Slice,
        reader: Reader,
        wrap: Callable[[Array], Any],
        read: Mapping[int, Read],
        streams: Streams | None = None,
    ) -> None:
        self._record = record
        self._reader = reader
        self._wrap = wrap
        self._entries = {entry.id: entry for entry in record.blocks}
        self._own = frozenset(
            each.runs for each in all_effects(record.program.instructions) if each.runs is not None
        )
        self._reading = Lock()
        self._changing = Lock()
        self._read: dict[int, Read] = {}
        self.blocks: dict[int, Block] = {}  # replaced as a whole, so that who looks needs no lock
        self.resident = Resident(self)
        self._window = Window(streams, wrap) if streams else None
        if self._window:
            finalize(self, self._window.close)
        self._add(read, self._own)

    def read(self, blocks: Iterable[int], progress: Progress = lambda done, total: None) -> None:
        """Have these blocks in memory. Whatever goes wrong, what was resident still is, and nothing more.

        Raises RunError R207 for a block that the slice does not hold, R208 before anything is read where memory is
        short, R201, R202, R203 where a file is not what the slice says, and what `progress` raises.
        """
        with self._reading:
            present = self.blocks.keys()
            missing = sorted(set(blocks) - present)
            for block in missing:
                if block not in self._entries:
                    reason = f"the slice of device {self._record.device} does not hold block {block}"
                    raise RunError("R207", reason, INTERNAL)
            if missing:
                self.check(missing)
                streamed = self._window.blocks.intersection(missing) if self._window else frozenset()
                whole = [block for block in missing if block not in streamed]
                self._add(self._reader.read(whole, progress) if whole else {}, streamed)

    def check(self, blocks: Iterable[int], without: Iterable[int] = ()) -> None:
        """Raises RunError R208 where there is no memory for these blocks beside those that are resident, but for
        `without`, which are to be dropped before: neither what devices.json gives the device, nor what the system has
        left, may be exceeded."""
        stay = self.blocks.keys() - set(without)
        missing = set(blocks) - stay
        name = self._record.device
        check_change(name, self._record.envelope.devices[name], stay, missing)
        freed = sum(map(self._reader.memory_bytes, self.blocks.keys() - stay))
        check_reading(name, missing, sum(map(self._reader.memory_bytes, missing)) - freed)

    def drop(self, blocks: Iterable[int]) -> None:
        """Give the memory of these blocks back to the system, at once. Nothing may run on them any more: who still
        refers to their weights reads zeros."""
        with self._changing:
            dropped = set(blocks)
            gone = [self._read.pop(block) for block in sorted(dropped & self._read.keys())]
            self._set({block: each for block, each in self.blocks.items() if block not in dropped})
        for each in gone:
            each.give_back()

    def restore(self, progress: Progress = lambda done, total: None) -> None:
        """Have exactly the blocks of the slice's own program in memory, and try those again that could not be read.
        Raises RunError as `read` does."""
        self.drop(self.blocks.keys() - self._own)
        self.read(self._own, progress)
        if self._window:
            self._window.restart()

    def lookups(self, by_token: Mapping[int, int]) -> list[Lookup]:
        """For `by_rows`: the templates of blocks that are read as tables. `by_token`: for each such block, which
        argument of its functions has the tokens."""
        arguments = {self._entries[block].template: ids for block, ids in by_token.items()}

        def tables(template: str) -> Callable[[], list[Table]]:
            blocks = [block for block in by_token if self._entries[block].template == template]

            def resident() -> list[Table]:
                read = (self._read.get(block) for block in blocks)
                return [each.table for each in read if each and each.table]

            return resident

        return [Lookup(template, ids, tables(template)) for template, ids in arguments.items()]

    def _add(self, read: Mapping[int, Read], streamed: Iterable[int]) -> None:
        blocks = {
            block: Block(self._entries[block], tuple(map(self._wrap, each.arrays)))
            for block, each in read.items()
        }
        if self._window:
            for block in self._window.blocks.intersection(streamed):
                blocks[block] = Block(self._entries[block], (), self._window)
        with self._changing:
            self._read |= read
            self._set(self.blocks | blocks)

    def _set(self, blocks: dict[int, Block]) -> None:
        self.blocks = blocks
        if self._window:
            self._window.use([block for block, each in blocks.items() if each.window])
