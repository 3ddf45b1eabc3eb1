"""Blocks from a slice's files: whole, into memory of their own, as a table that is read by token, or to be streamed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from llrun.device.blocks import Progress, Read
from llrun.device.slice import StoredSlice, entry_of, open_file
from llrun.device.streaming import StreamedFile
from llrun.device.table import Table
from llrun.device.weights import Advance, Source, read_weights
from llrun.device.window import Streams
from llrun.errors import INTERNAL, RunError
from llrun.memory import Stretch, side_by_side
from llrun.programs.graph import SMALL_TABLE_BYTES, token_arguments
from llrun.programs.ring import places
from llrun.schema import BlockEntry


class BlockFiles:
    """The blocks of a slice on disk. `by_token`: of those that are read as tables, which argument of their functions
    has the tokens. `verify` False skips the hashing."""

    def __init__(self, stored: StoredSlice, verify: bool) -> None:
        self._stored = stored
        self._verify = verify
        self._entries = {block.id: block for block in stored.record.blocks}
        device = stored.record.envelope.devices[stored.record.device]
        self._streamed, self._ring = device.streamed, device.ring
        ids = token_arguments(stored.record.graph)
        self.by_token: Mapping[int, int] = {
            block.id: ids[block.id]
            for block in stored.record.blocks
            if block.id in ids
            and any(param.by_token for param in block.params)
            and self._size(block) > SMALL_TABLE_BYTES
        }

    def memory_bytes(self, block: int) -> int:
        """What the block's weights take in memory; a table takes none, nor what streams through that of a ring."""
        return 0 if block in self.by_token or block in self._streamed else self.size_bytes([block])

    def size_bytes(self, blocks: Iterable[int]) -> int:
        """Bytes of the files of these blocks."""
        return sum(self._size(self._entries[block]) for block in blocks)

    def read(self, blocks: Sequence[int], progress: Progress) -> dict[int, Read]:
        """Read these blocks, each checked by its sha256. Where one cannot be read, or `progress` raises, none keeps
        memory.

        Raises RunError R201, R202, R203, and R208 where the system gives no memory.
        """
        advance = _advancing(progress, self.size_bytes(blocks))
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

    def streams(self, progress: Progress) -> Streams | None:
        """The blocks that stream, each read once and checked by its sha256, in the memory of their ring, if any do.

        Raises RunError as `read`."""
        if not self._streamed:
            return None
        advance = _advancing(progress, self.size_bytes(self._streamed))
        sizes = [self.size_bytes([block]) for block in self._streamed]
        where = places(sizes, self._ring)
        (memory,) = _room([where.size_bytes])
        files: dict[int, StreamedFile] = {}
        try:
            for block in self._streamed:
                entry = self._entries[block]
                files[block] = StreamedFile(open_file(self._stored, entry.file), self._source(entry))
                files[block].first(memory.bytes, self._verify, advance)
        except BaseException:
            for file in files.values():
                file.close()
            memory.give_back()
            raise
        return Streams(files, where, memory)

    def _read(self, entry: BlockEntry, stretch: Stretch | None, advance: Advance) -> Read:
        source, file = self._source(entry), open_file(self._stored, entry.file)
        if stretch is None:
            table = Table(file, source, self._verify, advance)
            return Read(table.arrays, table.close, table)
        with file:
            return Read(read_weights(file, source, stretch.bytes, self._verify, advance), stretch.give_back)

    def _source(self, entry: BlockEntry) -> Source:
        return Source(self._stored.folder / entry.file, entry_of(self._stored, entry.file), entry.params)

    def _size(self, entry: BlockEntry) -> int:
        return entry_of(self._stored, entry.file).size_bytes


def _advancing(progress: Progress, total: int) -> Advance:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    return advance


def _room(sizes: Sequence[int]) -> list[Stretch]:
    try:
        return side_by_side(sizes)
    except (OSError, OverflowError, ValueError) as error:
        reason = f"this system gives no memory for {sum(sizes)} bytes of weights: {error}"
        raise RunError("R208", reason, INTERNAL) from error
