"""Processes that may have so much memory and no more, by control groups of version 1 (root)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup/memory")
_LIMIT = "memory.limit_in_bytes"


def why_not() -> str | None:
    """Why memory cannot be limited here, None where it can."""
    if os.geteuid() != 0:
        return "limits of memory need root"
    if not (_GROUPS / "cgroup.procs").exists():
        return f"limits of memory need cgroup v1's controller at {_GROUPS}"
    return None


@contextmanager
def within(limit_bytes: int, name: str) -> Iterator[list[str]]:
    """What to put before a command that is killed once it has more. `name`: tells apart those with limits of their
    own."""
    group = _GROUPS / f"llrun-bench-{os.getpid()}-{name}"
    group.mkdir()
    try:
        (group / _LIMIT).write_text(str(limit_bytes))
        yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
    finally:
        group.rmdir()
