"""A device only at some hours: the laptop from seven in the evening to eight in the morning.

llrun bundle/ --rebalance examples/hooks/by_hour.py:rebalance
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import llrun

DEVICE = "laptop"
FROM, UNTIL = 19, 8  # o'clock, of the head


def rebalance(view: llrun.View) -> Sequence[llrun.Stage] | None:
    """Take the laptop in or leave it, when it should be other than it is; else all stays where it runs."""
    there, wanted = view.devices[DEVICE].alive, at_its_hours(time.localtime().tm_hour)
    if runs(view.stages) == wanted or not there:  # one that is switched off is not looked for every time
        return None
    best = view.best() if wanted else view.without(DEVICE).best()
    return best if best and runs(best) == wanted else None


def at_its_hours(hour: int) -> bool:
    """Whether it is from FROM to UNTIL, which may be the next day."""
    return FROM <= hour < UNTIL if FROM < UNTIL else hour >= FROM or hour < UNTIL


def runs(stages: Sequence[llrun.Stage]) -> bool:
    """Whether the device has something to do."""
    return any(DEVICE in stage.devices for stage in stages)
