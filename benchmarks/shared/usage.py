"""What a process holds now: memory, file descriptors, threads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """`own_bytes`: its own memory and its part of what is shared (Pss); `resident_bytes`: VmRSS."""

    own_bytes: int
    resident_bytes: int
    descriptors: int
    threads: int


def usage(pid: int) -> Usage:
    """Of a process that runs. Raises FileNotFoundError for one that is gone."""
    folder = Path(f"/proc/{pid}")
    status = (folder / "status").read_text()
    rollup = (folder / "smaps_rollup").read_text()
    return Usage(
        field(rollup, "Pss") * 1024,
        field(status, "VmRSS") * 1024,
        len(list((folder / "fd").iterdir())),
        field(status, "Threads"),
    )


def field(text: str, name: str) -> int:
    """The number after `name:` in the text of a file of /proc."""
    return int(next(line for line in text.splitlines() if line.startswith(f"{name}:")).split()[1])
