"""Prompts, and a scheduler driven until it is idle."""

from __future__ import annotations

import numpy as np
import numpy_model as synthetic

from llrun.requests.scheduler import Scheduler


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, synthetic.VOCABULARY, length).tolist()


def finish(scheduler: Scheduler) -> None:
    """Step until nothing is left to do."""
    while scheduler.step():
        pass
