"""Plans in rounds: devices whose blocks come from disk have several short runs of them instead of a long one.

A device with one run reads ahead what its ring holds while others have their turn, and has to wait for the rest of its
blocks in its own. With runs as short as the ring all of it is read in the turns of the others; each run costs a hop.
The stages of a plan with windows are cut into 2, 3, ... rounds, each with an equal part of every device's blocks; then
blocks go from the device that reads the longest to the one that reads the shortest, as long as that helps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from llcompile.ir.plan import Stage

ROUNDS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24)
STEPS = (8, 4, 2, 1)  # blocks that go at a time
Counts = Mapping[str, int]
Cost = Callable[[tuple[Stage, ...]], float]  # of stages, infinite where they cannot be


def best_rounds(
    stages: tuple[Stage, ...], cost: Cost, late: Callable[[], bool], output: int = 1
) -> tuple[Stage, ...]:
    """The best stages that were found, `stages` themselves where nothing is better. A plan with a group has one round.

    `late`: whether to look no further. `output`: blocks of the output head.
    """
    counts = middle_counts(stages, output)
    if any(stage.is_group for stage in stages) or len(counts) < 2:
        return stages
    best, least = stages, cost(stages)
    chosen = 1
    for rounds in ROUNDS:
        if late() or rounds > max(counts.values()):
            break
        found = in_rounds(counts, rounds, stages[0].lead, output)
        if (now := cost(found)) < least:
            best, least, chosen = found, now, rounds
    for step in STEPS:
        improved = True
        while improved and not late():
            improved = False
            for other in _exchanged(counts, step):
                found = in_rounds(other, chosen, stages[0].lead, output)
                if (now := cost(found)) < least * (1 - 1e-9):
                    best, least, counts, improved = found, now, other, True
                    break
    return best


def middle_counts(stages: Sequence[Stage], output: int = 1) -> Counts:
    """How many blocks between embedding and output head each device has, in the order of first runs. `output`: blocks
    of the output head."""
    first, counts = stages[-1].stop - output, dict[str, int]()
    for stage in stages:
        middle = sum(0 < block < first for block in stage.blocks)
        counts[stage.lead] = counts.get(stage.lead, 0) + middle
    return {name: count for name, count in counts.items() if count}


def in_rounds(counts: Counts, rounds: int, head: str, output: int = 1) -> tuple[Stage, ...]:
    """Stages in which every device has its blocks in so many runs of about equal length, one round after the other; the
    model's first block and the `output` last ones are the head's."""
    runs: list[tuple[str, int]] = [(head, 1)]
    for number in range(rounds):
        for name, count in counts.items():
            runs.append((name, count * (number + 1) // rounds - count * number // rounds))
    stages, start = list[Stage](), 0
    for name, length in (*runs, (head, output)):
        if stages and stages[-1].lead == name:
            stages[-1] = Stage.on(name, stages[-1].start, start + length)
        elif length:
            stages.append(Stage.on(name, start, start + length))
        start += length
    return tuple(stages)


def _exchanged(counts: Counts, step: int) -> Iterator[Counts]:
    """The counts with `step` blocks of one device given to another, which keeps one at least."""
    for giver, has in counts.items():
        for taker in counts:
            if giver != taker and has > step:
                yield {**counts, giver: has - step, taker: counts[taker] + step}
