"""Off a phone whose battery runs low, and back when it is charged.

    llrun bundle/ --rebalance examples/hooks/battery.py:rebalance

The head asks once a minute: LLRUN_BATTERY is a file, or behind a ! a command that takes less than a second, such as
'!ssh phone termux-battery-status'. Either tells percent, as a number or as JSON with a "percentage". LLRUN_PHONE is the
device, a worker: the head always runs the first and the last block.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import llrun

PHONE = os.environ.get("LLRUN_PHONE", "phone")
BATTERY = os.environ.get("LLRUN_BATTERY", "/sys/class/power_supply/battery/capacity")
LOW, CHARGED = 20, 50  # percent: what is between changes nothing
EVERY_S = 60.0


@dataclass
class OffWhenLow:
    """A balancing function; what is wrong with the battery's figure is raised, and so told by llrun once."""

    phone: str
    battery: str
    next_s: float = 0.0

    def __call__(self, view: llrun.View) -> Sequence[llrun.Stage] | None:
        """Stages without the phone when it has to be left, with it when it may help again; else None."""
        if time.monotonic() < self.next_s:
            return None
        self.next_s = time.monotonic() + EVERY_S
        without, charge = view.without(self.phone), percent(told(self.battery))
        if charge < LOW and self._runs(view.stages):
            return without.best()
        if charge >= CHARGED and not self._runs(view.stages):
            best = view.best()
            return best if best and self._runs(best) else None
        return None

    def _runs(self, stages: Sequence[llrun.Stage]) -> bool:
        return any(self.phone in stage.devices for stage in stages)


def told(battery: str) -> str:
    """What the file holds, or the command prints."""
    if not battery.startswith("!"):
        return Path(battery).read_text()
    words = shlex.split(battery[1:])
    return subprocess.run(words, capture_output=True, text=True, timeout=1.5, check=True).stdout


def percent(text: str) -> float:
    """Raises ValueError for what is no number from 0 to 100, nor JSON that has one."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    charge = found.get("percentage") if isinstance(found, dict) else found
    if not isinstance(charge, int | float) or not 0 <= charge <= 100:
        raise ValueError(f"the battery's charge is no percentage: {text.strip()[:80]!r}")
    return charge


rebalance = OffWhenLow(PHONE, BATTERY)
