"""Processes whose reads from this machine's disk are limited, by control groups of version 1 (root)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shared.processes import run

_BLKIO = Path("/sys/fs/cgroup/blkio")
_LIMIT = "blkio.throttle.read_bps_device"
PIECE = 4 << 20
_READ = f"""
import mmap, os, sys, time
memory, paths = mmap.mmap(-1, {PIECE}), sys.argv[1:]
files = [os.open(path, os.O_RDONLY | os.O_DIRECT) for path in paths]
start, total = time.perf_counter(), 0
for file in files:
    place = 0
    while count := os.preadv(file, [memory], place):
        place += count
    total += place
print(total / (time.perf_counter() - start))
"""


def why_not() -> str | None:
    """Why reads cannot be limited here, None where they can."""
    if os.geteuid() != 0:
        return "limits of reads need root"
    if not (_BLKIO / _LIMIT).parent.joinpath("cgroup.procs").exists():
        return f"limits of reads need cgroup v1's controller at {_BLKIO}"
    return None


@contextmanager
def limited(bytes_per_s: float | None, on: Path) -> Iterator[list[str]]:
    """What to put before a command that is to read so much a second at most from the disk that `on` lies on."""
    if bytes_per_s is None:
        yield []
        return
    group = _BLKIO / f"llrun-bench-{os.getpid()}"
    group.mkdir()
    try:
        device = os.stat(on).st_dev
        (group / _LIMIT).write_text(f"{os.major(device)}:{os.minor(device)} {bytes_per_s:.0f}")
        yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
    finally:
        group.rmdir()


def read_rate(before: Sequence[str], files: Sequence[Path]) -> float:
    """Bytes a second that `files` are read at, past the page cache, in pieces as a window reads them."""
    return float(run([*before, sys.executable, "-c", _READ, *files]).stdout)
