"""Devices as processes of this machine, each with a hard limit of memory, by control groups of version 1 (root)."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from shared.fleet import Loopback

_MEMORY = Path("/sys/fs/cgroup/memory")
_LIMIT, _MOST = "memory.limit_in_bytes", "memory.max_usage_in_bytes"
_END_S = 5.0


def why_not() -> str | None:
    """Why memory cannot be limited here, None where it can."""
    if os.geteuid() != 0:
        return "limits of memory need root"
    if not (_MEMORY / _LIMIT).is_file():
        return f"limits of memory need cgroup v1's controller at {_MEMORY}"
    return None


class Bounded(Loopback):
    """`limits`: bytes by device. What takes more is killed. Use as a context manager; end what runs on them before."""

    def __init__(self, limits: Mapping[str, int]) -> None:
        super().__init__(list(limits))
        self._limits = dict(limits)

    def command(self, name: str, words: Sequence[str]) -> list[str]:
        return ["sh", "-c", f'echo $$ > {self._group(name)}/cgroup.procs && exec "$@"', "sh", *words]

    def most_bytes(self, name: str) -> int:
        """The most that was counted of the device's processes, pages of files that can be dropped among it."""
        return int((self._group(name) / _MOST).read_text())

    def __enter__(self) -> Bounded:
        for name, limit in self._limits.items():
            self._group(name).mkdir()
            (self._group(name) / _LIMIT).write_text(str(limit))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        until = time.monotonic() + _END_S
        for name in self._limits:
            while self._group(name).exists() and time.monotonic() < until:
                try:
                    self._group(name).rmdir()
                except OSError:
                    time.sleep(0.05)  # a process that was killed is not gone yet

    def _group(self, name: str) -> Path:
        return _MEMORY / f"llrun-bench-{os.getpid()}-{name}"
