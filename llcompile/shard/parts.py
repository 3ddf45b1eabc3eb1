"""Parts of tensors: which indices along one axis a device has, and how parts of one tensor make one part."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Ranges = tuple[tuple[int, int], ...]


class CannotCut(Exception):
    """A block cannot be cut; the text says why, after "block: "."""


@dataclass(frozen=True)
class Part:
    """What a device has of a tensor: half-open `ranges` along `axis`.

    They ascend; none is empty, touches or overlaps another."""

    axis: int
    ranges: Ranges

    @property
    def size(self) -> int:
        return sum(stop - start for start, stop in self.ranges)

    def shifted(self, offset: int) -> Part:
        """The same indices, each greater by `offset`."""
        return Part(self.axis, tuple((start + offset, stop + offset) for start, stop in self.ranges))

    def within(self, start: int, stop: int) -> Part | None:
        """What of it lies in start..stop-1, counted from `start`; None where nothing does."""
        cut = ((max(a, start) - start, min(b, stop) - start) for a, b in self.ranges)
        ranges = tuple((a, b) for a, b in cut if a < b)
        return Part(self.axis, ranges) if ranges else None

    def place_in(self, whole: Part) -> int:
        """Where it begins in what is left of the tensor when `whole` is kept. Raises CannotCut where other indices
        would lie between its own."""
        first, last = self.ranges[0][0], self.ranges[-1][1]
        inside = whole.within(first, last)
        if inside is None or inside.shifted(first) != self:
            raise CannotCut("what is taken of a tensor lies apart in what a device has of it")
        before = whole.within(0, first)
        return before.size if before else 0


def union(parts: Iterable[Part]) -> Part:
    """All indices of `parts`, which are of one axis."""
    parts = list(parts)
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(r for part in parts for r in part.ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return Part(parts[0].axis, tuple(merged))
