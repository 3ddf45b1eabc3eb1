"""Files of blocks that are read again for every token: past the page cache, and checked each time."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO

import numpy as np
from numpy.typing import NDArray

from llrun.device.weights import (
    HEADER_LIMIT,
    Advance,
    Source,
    Stored,
    changed,
    damaged,
    header,
    pieces,
    stamp,
    view_of,
)
from llrun.errors import RunError
from llrun.memory import Array

PAGE = mmap.PAGESIZE
Memory = NDArray[np.uint8]


class StreamedFile:
    """A block's file, open for as long as it may be read, so that another file of its name changes nothing.

    It is read without the page cache where the file system can (O_DIRECT), else what was read is dropped from it: the
    cache is counted as the process's memory. `first` compares its sha256. What is read after is compared with a sum
    of each piece of 4 MiB, of its 64-bit words, at 16 GB/s, and with the file's size and time of change. That finds
    any one word that changed, and of more all but those whose changes cancel each other out.
    """

    def __init__(self, file: FileIO, source: Source) -> None:
        self._file = file
        self._source = source
        self._sums: dict[int, int] = {}
        self._stamp = stamp(self._file)
        self._direct = _past_the_cache(file, True)
        self._header: tuple[dict[str, Stored], int] = {}, 0

    @property
    def size_bytes(self) -> int:
        return self._source.entry.size_bytes

    @property
    def name(self) -> str:
        """The file's path, for people."""
        return str(self._source.path)

    def first(self, memory: Memory, verify: bool, advance: Advance) -> None:
        """Read it into `memory`, of whole pages, and take down what `arrays` and `check` go by; without `verify` its
        header is all that is read. Raises RunError R201, R202, R203."""
        digest = hashlib.sha256()
        size = self.size_bytes if verify else min(self.size_bytes, HEADER_LIMIT + PAGE)
        for start, piece in self._pieces(memory, size):
            if verify:
                digest.update(piece.data)
                self._sums[start] = _sum(piece)
                advance(len(piece))
        if verify and digest.hexdigest() != self._source.entry.sha256:
            raise damaged(self._source.path, digest.hexdigest(), self._source.entry.sha256)
        if not verify:
            advance(self.size_bytes)
        self._header = header(self._source.path, memory[: self.size_bytes])
        self.arrays(memory)  # here, and not at a token, if it is not what the slice says

    def arrays(self, memory: Memory) -> tuple[Array, ...]:
        """The arrays of the block where it has been read into `memory`. Raises RunError R203."""
        stored, start = self._header
        mine, path = memory[: self.size_bytes], self._source.path
        return tuple(view_of(path, mine, start, stored, param) for param in self._source.params)

    def read(self, memory: Memory) -> Iterator[tuple[int, Memory]]:
        """Read all of it into `memory` again: where each piece begins, and the piece, as soon as it is there. Raises
        RunError R201 where it cannot be read, R209 where it was written to."""
        if stamp(self._file) != self._stamp:
            raise changed(self.name)
        return self._pieces(memory, self.size_bytes)

    def sum(self, piece: Memory) -> int:
        """What is compared of a piece."""
        return _sum(piece)

    def check(self, start: int, value: int) -> None:
        """Raises RunError R209 where the sum of the piece at `start` is not what it was first."""
        if self._sums.setdefault(start, value) != value:
            raise changed(self.name)

    def close(self) -> None:
        self._file.close()

    def _pieces(self, memory: Memory, size: int) -> Iterator[tuple[int, Memory]]:
        for start, stop in pieces(size):
            self._fill(memory[start : -(-stop // PAGE) * PAGE].data, start, stop)
            if not self._direct:
                os.posix_fadvise(self._file.fileno(), start, stop - start, os.POSIX_FADV_DONTNEED)
            yield start, memory[start:stop]

    def _fill(self, view: memoryview, start: int, stop: int) -> None:
        """Read from `start` to `stop`. Whole pages are asked for: without the cache nothing less can be."""
        done = 0
        while start + done < stop:
            try:
                count = os.preadv(self._file.fileno(), [view[done:]], start + done)
            except OSError as error:
                if error.errno == errno.EINVAL and self._direct:  # one that says it can, and cannot
                    self._direct = _past_the_cache(self._file, False)
                    continue
                raise RunError("R201", f"cannot read {self.name}: {error.strerror}") from error
            if not count:
                raise RunError(
                    "R201",
                    f"cannot read {self.name}: it ends after {start + done} bytes, the bundle says"
                    f" {self.size_bytes}. Copy the slice again.",
                )
            done += count


def _past_the_cache(file: FileIO, wanted: bool) -> bool:
    """Whether `file` is read past the page cache from now on, as is wanted where the file system can."""
    with suppress(OSError):
        flags = fcntl.fcntl(file.fileno(), fcntl.F_GETFL)
        fcntl.fcntl(file.fileno(), fcntl.F_SETFL, flags | os.O_DIRECT if wanted else flags & ~os.O_DIRECT)
        return wanted
    return False


def _sum(piece: Memory) -> int:
    """Of the 64-bit words of `piece`, the last perhaps short, modulo 2^64."""
    whole = len(piece) // 8 * 8
    words = int(np.add.reduce(piece[:whole].view(np.uint64), dtype=np.uint64))
    return (words + int.from_bytes(piece[whole:].tobytes(), "little")) % (1 << 64)
