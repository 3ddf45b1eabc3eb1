"""--keep: the first and the last layers stay on the head, so that workers see activations of the layers between alone.

A layer is found in the graph, not by a name: it begins with a block that has a cache, and ends before the next one that
has; the last ends before the output head. What comes before the first cache belongs to no layer and is kept as well.
"""

from __future__ import annotations

from collections.abc import Sequence

from llcompile.ir.errors import CompileError
from llcompile.ir.plan import BlockCost
from llcompile.partition.options import Pin

_NOTHING_LEFT = "P216"


def kept_pins(keep: int, costs: Sequence[BlockCost], head: str) -> tuple[Pin, ...]:
    """What --keep `keep` asks of a plan: none for 0, else the blocks of both ends.

    Raises CompileError P216 (exit 2) when no layer would be left between them.
    """
    if not keep:
        return ()
    starts = layer_starts(costs)
    if 2 * keep >= len(starts):
        most = max(0, (len(starts) - 1) // 2)
        less = f"Use --keep {most} at most" if most else "Leave out --keep"
        raise CompileError(
            _NOTHING_LEFT,
            f"--keep {keep}: the model has {len(starts)} layers, the first and the last {keep} are all of them, and "
            f"nothing is left for a worker. {less}; for the head alone list no other device",
        )
    return (
        Pin(0, starts[keep], head, keep),
        Pin(starts[len(starts) - keep], len(costs), head, keep),
    )


def layer_starts(costs: Sequence[BlockCost]) -> tuple[int, ...]:
    """The first block of each layer."""
    return tuple(cost.block for cost in costs if cost.cache_bytes)
