"""What an entry of devices.json may say besides: room on disk, standing by, watts, a battery."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llcompile.cluster.strict_json import Faults, Record, positive, positive_int, record, shown
from llcompile.ir.cluster import Watts

EXTRA_KEYS = ("disk_bytes", "standby", "watts", "battery_joules")
WATTS_KEYS = ("busy", "idle")
MOST_WATTS, MOST_JOULES = 1e5, 1e12


@dataclass(frozen=True)
class Extras:
    """None, or False: not said."""

    disk_bytes: int | None = None
    standby: bool = False
    watts: Watts | None = None
    battery_joules: float | None = None


def read_extras(faults: Faults, fields: Record, place: str) -> Extras:
    """The optional keys of the entry at `place`; what is wrong with them is noted."""
    disk = battery = None
    if "disk_bytes" in fields:
        disk = positive_int(faults, fields["disk_bytes"], f"{place}.disk_bytes", "bytes")
    if "battery_joules" in fields:
        where = f"{place}.battery_joules"
        battery = positive(faults, fields["battery_joules"], where, "joules", MOST_JOULES)
    standby = fields.get("standby", False)
    if not isinstance(standby, bool):
        faults.add(f"{place}.standby", f"expected true or false, found {shown(standby)}")
    watts = _watts(faults, fields["watts"], f"{place}.watts") if "watts" in fields else None
    return Extras(disk, standby is True, watts, battery)


def _watts(faults: Faults, value: Any, place: str) -> Watts | None:
    fields = record(faults, value, place, WATTS_KEYS)
    if fields is None:
        return None
    figures = []
    for key in WATTS_KEYS:
        if key in fields:
            figures.append(positive(faults, fields[key], f"{place}.{key}", "watts", MOST_WATTS))
        else:
            faults.add(f"{place}.{key}", "missing. Measure it and give it here, or leave out watts")
    if len(figures) < len(WATTS_KEYS):
        return None
    busy, idle = figures
    if busy is None or idle is None:
        return None
    if idle > busy:
        faults.add(place, f"idle is {idle:g} W, more than busy, {busy:g} W. Exchange them")
        return None
    return Watts(busy, idle)
