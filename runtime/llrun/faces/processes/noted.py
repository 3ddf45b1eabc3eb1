"""A process's record of itself: written when it begins, kept up to date, removed when it ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from llrun.device.slice import StoredSlice
from llrun.errors import RunError
from llrun.faces.processes.folder import (
    Record,
    Role,
    State,
    forget,
    namespace,
    run_folder,
    running,
    started_ticks,
    write,
)

LOOK_S = 1.0


class Doing(NamedTuple):
    """What a process does now."""

    state: State
    sequences: int = 0


class Noted:
    """The record of this process. What it does is looked at once a second, and written where it has changed: whoever
    computes tells nobody anything. A folder that cannot be written to means that `ps` does not see the process, and
    nothing else."""

    def __init__(self, folder: Path, record: Record) -> None:
        self._folder = folder
        self._record = record
        self._look: Callable[[], Doing] = lambda: Doing(State.LOADING)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="noting", daemon=True)
        self._write()
        self._thread.start()

    def looks(self, look: Callable[[], Doing]) -> None:
        """What it does is what `look` says from now on. Called from a thread of its own, at any time."""
        self._look = look
        self._update()

    def close(self) -> None:
        self._stop.set()
        with self._lock:
            forget(self._folder, self._record.name)

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            self._update()

    def _update(self) -> None:
        state, sequences = self._look()
        if (state, sequences) != (self._record.state, self._record.sequences):
            self._record = msgspec.structs.replace(self._record, state=state, sequences=sequences)
            self._write()

    def _write(self) -> None:
        with self._lock, suppress(OSError):
            if not self._stop.is_set():
                write(self._folder, self._record)


@contextmanager
def noted(stored: StoredSlice, role: Role, address: str = "") -> Iterator[Noted]:
    """This process is seen by `ps` meanwhile. Records that ended processes left behind are removed on the way."""
    folder, pid = run_folder(), os.getpid()
    with suppress(RunError):
        running(folder)
    record = Record(
        pid=pid,
        started_ticks=started_ticks(pid) or 0,
        namespace=namespace(),
        role=role,
        bundle=stored.record.bundle,
        path=os.fsencode((stored.bundle or stored.folder).absolute()).decode(errors="replace"),
        model=stored.record.model.name,
        device=stored.device,
        address=address,
    )
    own = Noted(folder, record)
    try:
        yield own
    finally:
        own.close()


def forget_process(pid: int) -> None:
    """Remove the record of a process that was killed by this one."""
    forget(run_folder(), f"{namespace()}-{pid}.json")
