"""In how many pieces a prompt goes through the devices.

A full chunk reads the weights once for many tokens, so that on one device nothing is gained by smaller ones. Through
several devices pieces follow each other: the more there are, the less a device waits for the first and for the last.
Rows come to the same bits whatever they are computed with, so this changes no text.
"""

from __future__ import annotations

from math import ceil

from llrun.programs.rated import Rated, Stages

LEAST = 16  # rows: a piece has its own messages and calls, and fewer leave tiles of the kernels empty
ENOUGH = 1.02  # times the least seconds: what a prediction cannot tell apart


def portion(rated: Rated, stages: Stages, tokens: int) -> int:
    """Rows of each piece of a prompt of `tokens`: the most that are about as quick as any, and at most a chunk."""
    chunk: int = rated.shapes.chunk
    if len(stages) == 1 or min(tokens, chunk) <= LEAST:
        return chunk
    rows = [*range(LEAST, min(chunk, tokens), LEAST), chunk]
    seconds = [rated.pipeline_s(stages, ceil(tokens / each), min(each, tokens)) for each in rows]
    quick = min(seconds) * ENOUGH
    most: int = max(each for each, taken in zip(rows, seconds, strict=True) if taken <= quick)
    return most
