"""How rows of activations are laid out on the wire: the bytes of a row in each format, and where its parts begin.

A row is coded by itself, so that it is the same bits alone, in a chunk and beside other sequences' rows:

    f16   exponent (int16), features (float16)
    q8    exponent (int16), then of each group of up to GROUP features in a row: scale (float16), the feature that is
          the largest (float16) and where it stands (uint8); then all codes (int8)
    q4    the same with codes of 4 bits, two in a byte: element i and i + half of a group

Everything is times 2^exponent, which puts the row's largest feature into float16's highest range: no row is too large
or too small to travel. A group's largest feature is kept wide, so that the few that are far larger than all others cost
their neighbours nothing; the scale is the next largest's. With groups of 64 that is 4.6 and 8.6 bits a feature.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from llrun.schema import WireFormat

GROUP = 64
LEAST_FEATURES = 4  # with fewer, what stands beside the codes takes more than it saves
EXPONENT_BYTES, HALF_BYTES, PLACE_BYTES = 2, 2, 1
STEPS = {WireFormat.Q8: 128, WireFormat.Q4: 8}  # codes are -steps to steps - 1
WIRE_CODES = {WireFormat.F16: 16, WireFormat.Q8: 17, WireFormat.Q4: 18}  # beside those of dtypes


@dataclass(frozen=True)
class Groups:
    """A row of `features` in `count` groups of `size`, an even number; the last is filled up with zeros."""

    features: int
    count: int
    size: int

    @classmethod
    def of(cls, features: int) -> Groups:
        """As few groups as may be, all of one size."""
        count = -(-features // GROUP)
        size = -(-features // count)
        return cls(features, count, size + size % 2)

    @property
    def padded(self) -> int:
        return self.count * self.size


def row_bytes(wire: WireFormat, features: int) -> int:
    """Bytes of a row of float32 features as it travels."""
    match wire:
        case WireFormat.F32:
            return 4 * features
        case WireFormat.F16:
            return EXPONENT_BYTES + HALF_BYTES * features
        case WireFormat.Q8 | WireFormat.Q4:
            groups = Groups.of(features)
            beside = EXPONENT_BYTES + groups.count * (2 * HALF_BYTES + PLACE_BYTES)
            return beside + groups.padded // (1 if wire == WireFormat.Q8 else 2)


def may_be_coded(dtype: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor may travel in another format than its own: float32 features, row after row. `shape`: with -1 for
    the rows."""
    if dtype != "float32" or shape.count(-1) != 1:
        return False
    axis = shape.index(-1)
    return prod(shape[:axis]) == 1 and prod(shape[axis + 1 :]) >= LEAST_FEATURES
