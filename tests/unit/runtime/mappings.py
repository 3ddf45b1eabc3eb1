"""What of a mapping is resident, as the system counts it."""

from __future__ import annotations

import re
from pathlib import Path

from llrun.memory import Array


def resident_bytes(array: Array) -> int:
    """Of the mapping that `array` lies in."""
    address = array.ctypes.data
    for part in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        start, stop = (int(text, 16) for text in part.split(" ")[0].split("-")) if part else (0, 0)
        if start <= address < stop and (found := re.search(r"Rss:\s+(\d+)", part)):
            return int(found.group(1)) * 1024
    raise AssertionError("not mapped")
