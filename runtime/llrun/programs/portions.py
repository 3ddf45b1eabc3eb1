"""In how many pieces a prompt goes through the devices.

A full chunk reads the weights once for many tokens, so that on one device nothing is gained by smaller ones. Through
several devices pieces follow each other: the more there are, the less a device waits for the first and for the last.
Rows come to the same bits whatever they are computed with, so this changes no text.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from llrun.programs.rated import Rated, Stages

LEAST = 16  # rows: a piece has its own messages and calls, and fewer leave tiles of the kernels empty
ENOUGH = 1.02  # times the least seconds: what a prediction cannot tell apart


@dataclass(frozen=True)
class Pieces:
    """What pieces of each size take: `seconds` has rows, seconds of one from end to end, and those of each further one;
    ascending, the last is a chunk. Making it takes as long as many tokens of a small model, asking it next to
    nothing."""

    seconds: tuple[tuple[int, float, float], ...]

    @classmethod
    def of(cls, rated: Rated, stages: Stages) -> Pieces:
        chunk: int = rated.shapes.chunk
        rows = [*range(LEAST, chunk, LEAST), chunk] if len(stages) > 1 else [chunk]
        return cls(tuple((each, *rated.piece_s(stages, each)) for each in rows))

    def rows(self, tokens: int) -> int:
        """Rows of each piece of a prompt of `tokens`: the most that are about as quick as any, and at most a chunk. One
        that goes whole takes what lies between the sizes around it."""
        chunk = self.seconds[-1][0]
        if tokens <= LEAST:
            return chunk
        known: list[tuple[int, float]] = []
        fewer, less_s = 0, 0.0
        for rows, once_s, each_s in self.seconds:
            if rows >= tokens:
                whole_s = less_s + (once_s - less_s) * (tokens - fewer) / (rows - fewer)
                known.append((rows, whole_s if fewer else once_s))
                break
            known.append((rows, once_s + (ceil(tokens / rows) - 1) * each_s))
            fewer, less_s = rows, once_s
        quick = min(seconds for _, seconds in known) * ENOUGH
        most = max(rows for rows, seconds in known if seconds <= quick)
        return chunk if most >= tokens else most


def portion(rated: Rated, stages: Stages, tokens: int) -> int:
    """The same, for who asks once."""
    return Pieces.of(rated, stages).rows(tokens)
