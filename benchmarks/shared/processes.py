"""Running measured programs: their output, their memory, and nothing left behind when the user interrupts."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_POLL_S = 0.02


class Failed(Exception):
    """A measured program that did not end well: its command and the last lines that it wrote to stderr."""


@dataclass(frozen=True)
class Finished:
    """`peak_bytes`: the most that was resident at once; `anonymous_bytes` and `file_bytes`: the most of the
    process's own memory and of mapped files' pages, 0 when not watched."""

    stdout: str
    seconds: float
    peak_bytes: int
    anonymous_bytes: int = 0
    file_bytes: int = 0


def run(command: Sequence[str | Path], watch: bool = False, merged: bool = False) -> Finished:
    """Run `command` to its end in a process group of its own, which is killed when anything interrupts.

    `watch` samples the kinds of its memory every 20 ms, which disturbs it a little. `merged`: stderr
    goes to stdout. Raises Failed.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        child = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out if merged else err,
            start_new_session=True,
        )
        reaped = False
        try:
            anonymous, file = _watched(child.pid) if watch else (0, 0)
            _, status, usage = os.wait4(child.pid, 0)
            reaped = True
        finally:
            _end_group(child, reaped)
        child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        out.seek(0)
        err.seek(0)
        if child.returncode:
            tail = err.read().decode(errors="replace").splitlines()[-12:]
            raise Failed("\n".join([f"{child.returncode}: {' '.join(map(str, command))}", *tail]))
        return Finished(out.read().decode(), seconds, usage.ru_maxrss * 1024, anonymous, file)


def _end_group(child: subprocess.Popen[bytes], reaped: bool) -> None:
    """Kill what is left of the child's group, the child itself included unless it was waited for."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        if not reaped:
            child.wait()


def _watched(pid: int) -> tuple[int, int]:
    """The most anonymous and the most file-backed bytes resident in `pid` until it ends."""
    anonymous = file = 0
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        kinds = resident(Path(f"/proc/{pid}/status").read_text())
        anonymous, file = max(anonymous, kinds[0]), max(file, kinds[1])
        time.sleep(_POLL_S)
    return anonymous, file


def resident(status: str) -> tuple[int, int]:
    """Anonymous and file-backed resident bytes, from the text of /proc/PID/status; 0 for what it lacks."""
    sizes = dict.fromkeys(("RssAnon", "RssFile"), 0)
    for line in status.splitlines():
        key, _, value = line.partition(":")
        if key in sizes:
            sizes[key] = int(value.split()[0]) * 1024
    return sizes["RssAnon"], sizes["RssFile"]
