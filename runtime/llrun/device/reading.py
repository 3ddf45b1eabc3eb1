"""Blocks from a slice's files: whole, into memory of their own, or as a table that is read by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llrun.device.blocks import Progress, Read
from llrun.device.slice import StoredSlice, entry_of, open_file
from llrun.device.table import Table
from llrun.device.weights import Advance, Source, read_weights
from llrun.errors import INTERNAL, RunError
from llrun.memory import Stretch, side_by_side
from llrun.programs.graph import token_arguments
from llrun.schema import BlockEntry

# Read as any block: its memory is less than a small model's time for asking for each row (10 us of a token's 1.5 ms).
SMALL_TABLE_BYTES = 1 << 20


class BlockFiles:
    """The blocks of a slice on disk. `by_token`: of those that are read as tables, which argument of their functions
    has the tokens. `verify` False skips the hashing."""

    def __init__(self, stored: StoredSlice, verify: bool) -> None:
        self._stored = stored
        self._verify = verify
        self._entries = {block.id: block for block in stored.record.blocks}
        ids = token_arguments(stored.record.graph)
        self.by_token: Mapping[int, int] = {
            block.id: ids[block.id]
            for block in stored.record.blocks
            if block.id in ids
            and any(param.by_token for param in block.params)
            and self._size(block) > SMALL_TABLE_BYTES
        }

    def memory_bytes(self, block: int) -> int:
        """What the block's weights take in memory; a table takes none."""
        return 0 if block in self.by_token else self._size(self._entries[block])

    def read(self, blocks: Sequence[int], progress: Progress) -> dict[int, Read]:
        """Read these blocks, each checked by its sha256. Where one cannot be read, or `progress` raises, none keeps
        memory.

        Raises RunError R201, R202, R203, and R208 where the system gives no memory.
        """
        total, done = sum(self._size(self._entries[block]) for block in blocks), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total)

        whole = [block for block in blocks if block not in self.by_token]
        stretches = dict(zip(whole, _room([self.memory_bytes(block) for block in whole]), strict=True))
        read: dict[int, Read] = {}
        try:
            for block in blocks:
                read[block] = self._read(self._entries[block], stretches.get(block), advance)
        except BaseException:
            for each in read.values():
                each.give_back()
            for stretch in stretches.values():
                stretch.give_back()
            raise
        return read

    def _read(self, entry: BlockEntry, stretch: Stretch | None, advance: Advance) -> Read:
        source = Source(self._stored.folder / entry.file, entry_of(self._stored, entry.file), entry.params)
        file = open_file(self._stored, entry.file)
        if stretch is None:
            table = Table(file, source, self._verify, advance)
            return Read(table.arrays, table.close, table)
        with file:
            return Read(read_weights(file, source, stretch.bytes, self._verify, advance), stretch.give_back)

    def _size(self, entry: BlockEntry) -> int:
        return entry_of(self._stored, entry.file).size_bytes


def _room(sizes: Sequence[int]) -> list[Stretch]:
    try:
        return side_by_side(sizes)
    except (OSError, OverflowError, ValueError) as error:
        reason = f"this system gives no memory for {sum(sizes)} bytes of weights: {error}"
        raise RunError("R208", reason, INTERNAL) from error
