"""Tables of which a token reads one row: the rows of a call read from the file that was hashed, and checked again."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator, Sequence
from io import FileIO

import numpy as np

from llrun.device.weights import (
    HEADER_LIMIT,
    Advance,
    Source,
    changed,
    damaged,
    fill,
    header,
    pieces,
    stamp,
    view_of,
)
from llrun.errors import RunError
from llrun.memory import Array, aligned_copy, reserve_address_space

PAGE = mmap.PAGESIZE
DIGEST_BYTES = 16


class Table:
    """A block's weights with the arrays that are read by token left in the file.

    `arrays`: all of them, in the order of the block's params. Those read by token are addresses without memory:
    `hold` reads the rows of some tokens into their places, `release` gives the memory back. Other arrays are read
    once. The file is open for as long as the table is, so that another file of its name changes nothing. Nothing is
    mapped, for a mapped file that is overwritten changes under the reader, and one that is cut ends the process.
    What is read is compared with digests of each page, 16 bytes of sha256, made while the whole was hashed.
    Without `verify` there are none; then the file's size and time of change must stay.
    """

    def __init__(self, file: FileIO, source: Source, verify: bool, advance: Advance) -> None:
        self._file = file
        self._source = source
        self._size = source.entry.size_bytes
        self._stamp = stamp(self._file)
        self._digests = self._hash(advance) if verify else b""
        if not verify:
            advance(self._size)
        self._region = reserve_address_space(self._size)
        self._bytes = np.frombuffer(self._region, np.uint8)[: self._size]
        self._take(0, min(self._size, HEADER_LIMIT + PAGE))
        stored, start = header(source.path, self._bytes)
        self.release()
        views = [view_of(source.path, self._bytes, start, stored, param) for param in source.params]
        self._rows = [view for view, param in zip(views, source.params, strict=True) if param.by_token]
        self.arrays = tuple(
            view if param.by_token else self._copy(view)
            for view, param in zip(views, source.params, strict=True)
        )

    def hold(self, tokens: Sequence[int]) -> None:
        """Read the rows of these tokens; those that an array lacks are its nearest, as the kernels have it.

        Raises RunError R209 when the file is not what it was.
        """
        for first, last in self._runs(tokens):
            self._take(first * PAGE, min((last + 1) * PAGE, self._size))

    def release(self) -> None:
        """Give back the memory of all rows."""
        self._region.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Give back the memory, and let go of the file: nothing can be read any more."""
        self.release()
        self._file.close()

    def _runs(self, tokens: Sequence[int]) -> Iterator[tuple[int, int]]:
        """First and last page of each run of pages that these rows lie in, no page twice."""
        base = self._bytes.ctypes.data
        pages: set[int] = set()
        for array in self._rows:
            start, step = array.ctypes.data - base, array.strides[0]
            for token in tokens:
                offset = start + min(max(token, 0), len(array) - 1) * step
                pages.update(range(offset // PAGE, (offset + step - 1) // PAGE + 1))
        first = last = -2
        for page in sorted(pages):
            if page != last + 1:
                if last >= 0:
                    yield first, last
                first = page
            last = page
        if last >= 0:
            yield first, last

    def _copy(self, view: Array) -> Array:
        start = view.ctypes.data - self._bytes.ctypes.data
        first, stop = start // PAGE * PAGE, min(-(-(start + view.nbytes) // PAGE) * PAGE, self._size)
        self._take(first, stop)
        copy = aligned_copy(view)
        self.release()
        return copy

    def _take(self, start: int, stop: int) -> None:
        """Read whole pages into their places, and check them."""
        view = self._bytes[start:stop].data
        if not self._digests and stamp(self._file) != self._stamp:
            raise changed(self._source.path)
        try:
            fill(self._file, view, start, self._source)
        except RunError as error:
            raise changed(self._source.path) from error
        if self._digests:
            first = start // PAGE * DIGEST_BYTES
            known = self._digests[first : first + -(-len(view) // PAGE) * DIGEST_BYTES]
            if _digests(view) != known:
                raise changed(self._source.path)

    def _hash(self, advance: Advance) -> bytes:
        """Digests of all pages, one after the other; the whole is checked against the bundle."""
        whole, parts = hashlib.sha256(), []
        memory = memoryview(bytearray(min(self._size, 4 << 20)))
        for start, stop in pieces(self._size):
            piece = memory[: stop - start]
            fill(self._file, piece, start, self._source)
            whole.update(piece)
            parts.append(_digests(piece))
            advance(stop - start)
        if whole.hexdigest() != self._source.entry.sha256:
            raise damaged(self._source.path, whole.hexdigest(), self._source.entry.sha256)
        return b"".join(parts)


def _digests(view: memoryview) -> bytes:
    """Of each page of `view`, the last perhaps short, one after the other."""
    sha256 = hashlib.sha256
    return b"".join(
        sha256(view[start : start + PAGE]).digest()[:DIGEST_BYTES] for start in range(0, len(view), PAGE)
    )
