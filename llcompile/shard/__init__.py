"""Templates cut for several devices: each makes a part of one sum, and of the sum all make what the block makes.

    split(template)                        where it can be cut, told from the dataflow alone; or a sentence why not
    shard(split, shares, sums, multiple)   its pieces for shares of one group
    sum_template(spec, count)              what adds up parts elsewhere

A matrix whose input every device has is cut by its outputs; one whose input is cut, by its input's features, and gives
a part of a sum. What lies between is done with a device's own indices alone: whole heads of attention, columns of an
MLP. What follows the sum (biases, norms, the residual sum) every device does, and computes again what of the block's
inputs it needs. A cut weight has the shape and the values of its ranges; one that no device has less of is whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from llcompile.ir.graph import Template
from llcompile.ir.shard import ShardedBlock
from llcompile.shard.find import Split, find
from llcompile.shard.parts import CannotCut
from llcompile.shard.pieces import shard_of, sum_template, tail_of

__all__ = ["Split", "shard", "split", "sum_template"]


def split(template: Template) -> Split | str:
    """Where `template` can be cut, or why it cannot be."""
    try:
        found = find(template)
        tail_of(found, 1)
        shard_of(found, [product.least() for product in found.products], 1)
    except CannotCut as reason:
        return str(reason)
    return found


def shard(split: Split, shares: Sequence[float], sums: int, multiple: int) -> ShardedBlock | str:
    """The pieces of a block for a group with `shares`, which sum to 1, by rank; or why there are none.

    The tail takes `sums` parts: as many as there are shares, or one, their sum. Matrices are cut at multiples of
    `multiple` features (llcompile.ir.packing.cut_multiple); so are shares where there are enough, and else multiply
    zeros beside them. Equal sizes give equal templates, of one id.
    """
    try:
        by_rank = zip(*(product.ranges(shares, multiple) for product in split.products), strict=True)
        shards = tuple(
            split.piece((ranges, multiple), partial(shard_of, split, ranges, multiple)) for ranges in by_rank
        )
        return ShardedBlock(shards, split.piece(sums, partial(tail_of, split, sums)), sums)
    except CannotCut as reason:
        return str(reason)
