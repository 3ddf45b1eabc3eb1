"""What an attention kernel is made for: the node's attributes, the cache, and the sizes of its blocks."""

from __future__ import annotations

from dataclasses import dataclass
from math import e, gcd, log2

from llcompile.ir.packing import CACHE_TILE

TILE = CACHE_TILE  # keys under one maximum: what is summed from a tile depends on nothing but the tile and the query
LOG2_E = log2(e)
NONE = -1e30  # the score of a key that is not seen; finite, so that differences are no NaN
FLOOR = -1e29  # below every real score, and far above NONE
_REGISTERS = {16: 32, 8: 16, 4: 32}  # of AVX-512, AVX2, NEON, by the float32 that one holds


@dataclass(frozen=True)
class AttentionSpec:
    """Attributes of an llcompile.Attention node and the shapes around it. `cache`: f32, f16 or q8."""

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    context: int
    cache: str
    scale: float
    window: int
    softcap: float
    alibi: bool

    @property
    def group(self) -> int:
        """Query heads that share a key-value head."""
        return self.heads // self.kv_heads

    @property
    def reach(self) -> int:
        """Tokens that a query looks back over, itself included."""
        return self.window or self.context + 1


@dataclass(frozen=True)
class Blocking:
    """Rows and vectors of sums that are kept in registers together with what is multiplied."""

    lanes: int

    @property
    def sums(self) -> int:
        return _REGISTERS[self.lanes] * 3 // 4

    @property
    def rows(self) -> int:
        """Query rows of a prefill's register block; it goes with `vectors(rows)` vectors."""
        return 6

    def vectors(self, rows: int) -> int:
        """Vectors of sums to a row: a power of two, so that they divide a tile."""
        count = 8
        while count > 1 and rows * count > self.sums:
            count //= 2
        return count

    def strips(self, width: int, rows: int) -> tuple[int, int, int]:
        """How `width` columns are cut: float32 to a vector, vectors to a strip, vectors left over."""
        wide = gcd(width, self.lanes)
        together = self.vectors(rows)
        return wide, together, width // wide % together
