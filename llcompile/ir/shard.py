"""A block cut for several devices: what each computes of it, and what they do with the sum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from llcompile.ir.graph import Template
from llcompile.ir.plan import Stage


@dataclass(frozen=True)
class WeightCut:
    """What a piece has of weight number `weight` of the block's template: along `axis` (None: all of it) the half-open
    `ranges`, one behind the other. Of a linear weight axis 0 is out features, 1 in features."""

    weight: int
    axis: int | None = None
    ranges: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Piece:
    """A shard or a tail. `cuts`: what each of `template.weights` is of the block's weights, in order. `inputs`: numbers
    of the block's inputs that it takes, in order; a tail's parts or sum come before them."""

    template: Template
    inputs: tuple[int, ...]
    cuts: tuple[WeightCut, ...]


@dataclass(frozen=True)
class ShardedBlock:
    """The pieces of a template for a group: `shards` by rank, each makes one tensor; added in the order of ranks, the
    `tail` makes the block's outputs of them. It takes as many parts as it `sums`: all, or one that is the sum."""

    shards: tuple[Piece, ...]
    tail: Piece
    sums: int


@dataclass(frozen=True)
class Group:
    """A stage of several devices, and the pieces of its blocks."""

    stage: Stage
    blocks: Mapping[int, ShardedBlock]

    def pieces(self, rank: int) -> Iterator[tuple[int, Piece, Piece]]:
        """Of each block, in order, its shard and its tail at `rank`."""
        return (
            (block, self.blocks[block].shards[rank], self.blocks[block].tail) for block in self.stage.blocks
        )


def partial_name(block: int, rank: int) -> str:
    """The tensor that the shard of `block` makes at `rank`."""
    return f"block{block}.part{rank}"


def sum_name(block: int, number: int) -> str:
    """Sum `number` of the parts of `block`: a star's only one is 0; of a ring, that of ranks 0 to `number` + 1."""
    return f"block{block}.sum{number}"
