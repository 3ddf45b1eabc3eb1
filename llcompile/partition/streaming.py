"""Which blocks stream on a device that has a window, and what their weights take there."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from llcompile.ir.plan import BlockCost, Stage
from llrun.programs.ring import places, ring_of


@dataclass(frozen=True)
class Streamed:
    """`numbers`: of what the device holds, in the order in which it runs; `ring`: how many are in memory at once."""

    numbers: tuple[int, ...] = ()
    ring: int = 0


def window_on(stages: Sequence[Stage], name: str) -> int:
    """Blocks that device `name` has in memory at once, the ends of the model aside; 0: all of them."""
    return max((stage.window for stage in stages if name in stage.devices), default=0)


def ends(costs: Sequence[BlockCost]) -> tuple[int, ...]:
    """The blocks of the model that never stream: the embedding, and an output head of one block."""
    last = len(costs) - 1
    return (0,) if costs[last].of_output else (0, last)


def streamed(window: int, held: Sequence[BlockCost], ends: Collection[int]) -> Streamed:
    """What streams of `held`, in the order in which it runs: `ends`, blocks of the model, never do."""
    middle = [number for number, cost in enumerate(held) if cost.block not in ends]
    return Streamed(*ring_of(middle, window))


def weights_in_memory(stream: Streamed, held: Sequence[BlockCost]) -> int:
    """Bytes of the weights of `held` that are kept, and of the ring."""
    numbers = set(stream.numbers)
    kept = sum(cost.weights_bytes for number, cost in enumerate(held) if number not in numbers)
    return kept + places([held[number].weights_bytes for number in stream.numbers], stream.ring).size_bytes


def as_streamed(cost: BlockCost) -> BlockCost:
    """The cost of a block that comes from disk for every token."""
    return replace(cost, streamed_bytes=cost.weights_bytes)
