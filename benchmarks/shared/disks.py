"""Processes whose reads from this machine's disk are limited, by control groups of version 1 (root)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_BLKIO = Path("/sys/fs/cgroup/blkio")
_LIMIT = "blkio.throttle.read_bps_device"


def why_not() -> str | None:
    """Why reads cannot be limited here, None where they can."""
    if os.geteuid() != 0:
        return "limits of reads need root"
    if not (_BLKIO / _LIMIT).parent.joinpath("cgroup.procs").exists():
        return f"limits of reads need cgroup v1's controller at {_BLKIO}"
    return None


@contextmanager
def limited(bytes_per_s: float | None, on: Path, name: str = "all") -> Iterator[list[str]]:
    """What to put before commands that together are to read so much a second at most from the disk that `on` lies on.
    `name`: tells apart those that are limited each by itself."""
    if bytes_per_s is None:
        yield []
        return
    group = _BLKIO / f"llrun-bench-{os.getpid()}-{name}"
    group.mkdir()
    try:
        device = os.stat(on).st_dev
        (group / _LIMIT).write_text(f"{os.major(device)}:{os.minor(device)} {bytes_per_s:.0f}")
        yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
    finally:
        group.rmdir()
