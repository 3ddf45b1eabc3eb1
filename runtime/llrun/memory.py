"""Memory that kernels may read: aligned to 64 bytes, taken when touched, large on huge pages."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from math import prod

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
ALIGNMENT = 64
HUGE_PAGE = 2 << 20
Spec = tuple[tuple[int, ...], str]  # shape and dtype
_NORESERVE = getattr(
    mmap, "MAP_NORESERVE", 0x4000
)  # Linux's value where Python does not name it (before 3.13)


def empty(shape: Sequence[int], dtype: str) -> Array:
    """An uninitialised array whose first byte is aligned to 64 bytes, as generated vector code requires."""
    size = prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.__array_interface__["data"][0] % ALIGNMENT  # a third of the time that `ctypes` takes
    return raw[start : start + size].view(dtype).reshape(tuple(shape))


def aligned_copy(array: Array) -> Array:
    copy = empty(array.shape, array.dtype.name)
    copy[...] = array
    return copy


def is_aligned(array: Array) -> bool:
    return array.ctypes.data % ALIGNMENT == 0 and array.flags.c_contiguous


def reserve(size: int, huge: bool) -> NDArray[np.uint8]:
    """`size` zero bytes of private anonymous memory, aligned to a page (to a huge page with `huge`).

    Pages are committed when first written. Huge pages spare address look-ups when weights are streamed
    (measured: 33 against 27 GB/s on one core); what is left of the last one stays on small pages.
    """
    region, start = _region(size, huge)
    return np.frombuffer(region, np.uint8)[start : start + size]


@dataclass(frozen=True, eq=False)
class Stretch:
    """Whole pages of a region that others lie in as well. `bytes`: those that were asked for, aligned to a page."""

    bytes: NDArray[np.uint8]
    _region: mmap.mmap
    _start: int

    def give_back(self) -> None:
        """Have the system take the pages at once, whoever still refers to them: they read as zeros from now on."""
        if len(self.bytes):
            self._region.madvise(mmap.MADV_DONTNEED, self._start, len(self.bytes))


def side_by_side(sizes: Sequence[int]) -> list[Stretch]:
    """Memory of each size, on page boundaries of one region of huge pages: in regions of their own each would have
    half a huge page on small ones on average."""
    starts = list(accumulate((-(-size // mmap.PAGESIZE) * mmap.PAGESIZE for size in sizes), initial=0))
    region, first = _region(starts.pop(), huge=True)
    raw = np.frombuffer(region, np.uint8)
    return [
        Stretch(raw[first + start : first + start + size], region, first + start)
        for start, size in zip(starts, sizes, strict=True)
    ]


def _region(size: int, huge: bool) -> tuple[mmap.mmap, int]:
    """A region, and where in it `size` bytes begin as `reserve` says."""
    if not huge or size < HUGE_PAGE:
        return _anonymous(size, 0), 0
    region = _anonymous(size + HUGE_PAGE, 0)
    start = -np.frombuffer(region, np.uint8).ctypes.data % HUGE_PAGE
    whole = start + size // HUGE_PAGE * HUGE_PAGE
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # A kernel without transparent huge pages: small ones serve as well, only slower.
        with suppress(OSError):
            region.madvise(mmap.MADV_HUGEPAGE, 0, whole)
            region.madvise(mmap.MADV_NOHUGEPAGE, whole, size + HUGE_PAGE - whole)
    return region, start


class Slots:
    """Arrays (count, *shape), one for each (shape, dtype) given, each aligned: zero bytes whose pages are committed
    when first written, in one region that is not counted as used before. Raises OSError when there is no room."""

    def __init__(self, specs: Sequence[Spec], count: int) -> None:
        self.count = count
        self._sizes = [prod(shape) * np.dtype(dtype).itemsize for shape, dtype in specs]
        padded = [-(-size * count // mmap.PAGESIZE) * mmap.PAGESIZE for size in self._sizes]
        self._starts = [sum(padded[:i]) for i in range(len(specs))]
        self._region = _anonymous(sum(padded), _NORESERVE)
        raw = np.frombuffer(self._region, np.uint8)
        self.arrays = tuple(
            raw[start : start + size * count].view(dtype).reshape((count, *shape))
            for (shape, dtype), start, size in zip(specs, self._starts, self._sizes, strict=True)
        )

    def discard(self, slot: int) -> None:
        """Give back the pages that hold nothing but `slot`'s bytes; what is left of it is as it was."""
        for start, size in zip(self._starts, self._sizes, strict=True):
            first = -(-(start + slot * size) // mmap.PAGESIZE) * mmap.PAGESIZE
            last = (start + (slot + 1) * size) // mmap.PAGESIZE * mmap.PAGESIZE
            if first < last:
                self._region.madvise(mmap.MADV_DONTNEED, first, last - first)


def reserve_slots(specs: Mapping[int, Sequence[Spec]], most: int) -> dict[int, Slots]:
    """Slots for each entry of `specs`: `most` of each, or as many as the address space has room for (a power of two
    less each time). Raises OSError when there is none for a single one."""
    count = most
    while True:
        try:
            return {key: Slots(each, count) for key, each in specs.items()}
        except OSError:
            if count == 1:
                raise
            count //= 2


def reserve_address_space(size: int) -> mmap.mmap:
    """Zero bytes of which few are ever used: a page takes memory when it is first touched, by itself alone.

    Huge pages would take, and clear, 2 MiB for each row of a table that is read.
    """
    region = _anonymous(size, _NORESERVE)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with suppress(OSError):  # a kernel without transparent huge pages
            region.madvise(mmap.MADV_NOHUGEPAGE)
    return region


def _anonymous(size: int, flags: int) -> mmap.mmap:
    return mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | flags)


def peak_bytes() -> int:
    """The most memory this process has had resident, in bytes (VmHWM)."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
