"""Figures as people read them."""

from __future__ import annotations


def human_bytes(size: float) -> str:
    """Bytes in binary units, three figures: 1.42 GiB, 512 MiB, 3.2 KiB, 12 B."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= scale:
            return f"{_three_figures(size / scale)} {unit}"
    return f"{size:.0f} B"


def human_seconds(seconds: float) -> str:
    """Seconds in a fitting unit, three figures: 2.35 s, 41.2 ms, 850 us."""
    if seconds >= 1 or seconds == 0:
        return f"{_three_figures(seconds)} s"
    scale, unit = (1e3, "ms") if seconds >= 1e-3 else (1e6, "us")
    return f"{_three_figures(seconds * scale)} {unit}"


def _three_figures(value: float) -> str:
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"
