"""Rows of caches out and in: what a block holds of some positions, in an order that no kernel's layout is part of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from math import prod

import numpy as np
from numpy.typing import NDArray

from llrun.engine.stores import SequenceStore
from llrun.memory import Array
from llrun.schema import BlockEntry, CacheArray


class Caches:
    """The caches of a device's sequences as rows, for who sends and receives them. Safe from any thread."""

    def __init__(self, store: SequenceStore) -> None:
        self._store = store

    def row_bytes(self, block: int) -> int:
        """What a row of all of a block's caches takes; 0 where there are none of it here."""
        entry = self._store.entries.get(block)
        return row_bytes(entry) if entry else 0

    def tokens(self, block: int) -> dict[int, int]:
        """How many first tokens of each open sequence the caches of `block` hold."""
        with self._store.lock:
            return self._store.tokens(block)

    def rows_out(self, sequence: int, block: int, start: int, stop: int) -> memoryview | None:
        """Rows start..stop-1, as `rows_out`; None where the sequence is closed, or they are not here any more."""
        with self._store.lock:
            if self._store.tokens(block).get(sequence, 0) < stop:
                return None
            arrays = self._store.slot_arrays(sequence, block)
            return rows_out(arrays, self._store.entries[block].caches, start, stop)

    def rows_in(self, sequence: int, block: int, start: int, stop: int, payload: memoryview) -> int:
        """Write rows that came in, but for those of a sequence that was closed and of a block that runs here by now,
        and those before which some are missing; how many first tokens the block holds then, at least `stop` unless
        some are missing. Raises ProtocolError for a sequence that was never opened, and a block without caches."""
        with self._store.lock:
            filled = self._store.admit(sequence, block)
            if filled is None:
                return stop
            if start <= filled:
                arrays = self._store.slot_arrays(sequence, block)
                rows_in(arrays, self._store.entries[block].caches, start, stop, payload)
                filled = self._store.fill(sequence, block, start, stop)
            return filled


def row_bytes(entry: BlockEntry) -> int:
    """What one position takes in all cache arrays of a block; 0 for one without caches."""
    return sum(map(_row_bytes, entry.caches))


def rows_out(arrays: Sequence[Array], caches: Sequence[CacheArray], start: int, stop: int) -> memoryview:
    """The rows start..stop-1 of a block's caches in one slot, as bytes.

    `arrays`: for each of `caches` one of its shape. For each in turn: (rows, its other axes in their order). Nothing
    is read of other rows, which may be written meanwhile.
    """
    out = np.empty((stop - start) * sum(map(_row_bytes, caches)), np.uint8)
    for part, flat in _parts(arrays, caches, start, stop, out):
        flat[...] = part
    return out.data


def rows_in(
    arrays: Sequence[Array], caches: Sequence[CacheArray], start: int, stop: int, payload: memoryview
) -> None:
    """Write the rows start..stop-1 that `rows_out` gave, and nothing else. `payload`: of exactly their bytes."""
    for part, flat in _parts(arrays, caches, start, stop, np.frombuffer(payload, np.uint8)):
        part[...] = flat


def _parts(
    arrays: Sequence[Array],
    caches: Sequence[CacheArray],
    start: int,
    stop: int,
    flat: NDArray[np.uint8],
) -> Iterator[tuple[Array, Array]]:
    """Views of the caches that together are these rows, each with the piece of `flat` of its shape."""
    ends = accumulate(((stop - start) * _row_bytes(cache) for cache in caches), initial=0)
    for (begin, end), array, cache in zip(pairwise(ends), arrays, caches, strict=True):
        others = [axis for axis in range(len(cache.shape)) if axis not in cache.token_axes]
        rows = array.transpose([*cache.token_axes, *others])
        mine = flat[begin:end].view(cache.dtype).reshape(stop - start, *rows.shape[len(cache.token_axes) :])
        for first, index in _boxes(rows.shape[: len(cache.token_axes)], start, stop):
            part = rows[index]
            count = prod(part.shape[: len(index)])
            yield part, mine[first - start : first - start + count].reshape(part.shape)


def _boxes(sizes: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """The positions start..stop-1 of axes of these sizes, which count in row-major order, as boxes: the first position
    of each, and its index. At most two a level but for the innermost: a beginning, the middle, an end."""
    if len(sizes) == 1:
        yield start, (slice(start, stop),)
        return
    inner = prod(sizes[1:])
    whole = -(-start // inner) * inner, stop // inner * inner
    if whole[0] < whole[1]:
        index = (slice(whole[0] // inner, whole[1] // inner), *(slice(None) for _ in sizes[1:]))
        yield whole[0], index
        ends = [(start, whole[0]), (whole[1], stop)]
    else:
        ends = [(start, min(whole[0], stop)), (min(whole[0], stop), stop)]
    for first, last in ends:
        if first < last:
            outer = first // inner
            for begin, rest in _boxes(sizes[1:], first - outer * inner, last - outer * inner):
                yield outer * inner + begin, (slice(outer, outer + 1), *rest)


def _row_bytes(cache: CacheArray) -> int:
    others = (size for axis, size in enumerate(cache.shape) if axis not in cache.token_axes)
    return prod(others) * np.dtype(cache.dtype).itemsize
