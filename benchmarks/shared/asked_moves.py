"""Hooks for llrun --rebalance that ask for one move at a token, as files; what is asked comes from the environment.

LLRUN_MOVE: `TOKENS:BLOCKS:FROM:TO`: once the first sequence holds TOKENS tokens, the last BLOCKS blocks of
FROM's first stage become TO's, whose stage comes next.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

asked: list[int] = []  # so that it is asked for once


def rebalance(view: Any) -> Sequence[Any] | None:
    """The stages after the move, at its time; else None."""
    tokens, blocks, source, destination = os.environ["LLRUN_MOVE"].split(":")
    if asked or not view.sequences or view.sequences[0].tokens < int(tokens):
        return None
    asked.append(view.sequences[0].tokens)
    stages = list(view.stages)
    place = [stage.lead for stage in stages].index(source)
    first, second = stages[place], stages[place + 1]
    assert second.lead == destination
    (start, stop), (_, end) = first.blocks, second.blocks
    stage = type(first).on
    stages[place : place + 2] = [
        stage(source, start, stop - int(blocks)),
        stage(destination, stop - int(blocks), end),
    ]
    return stages
