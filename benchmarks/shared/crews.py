"""Other programs' workers: processes on several devices that are ended when the measurement is over."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from shared.fleet import Places

_START_S = 120.0
_POLL_S = 0.1
_LISTEN = "0A"  # of /proc/net/tcp


class Crew:
    """What each process says goes to a file of `folder`. Use as a context manager."""

    def __init__(self, places: Places, folder: Path) -> None:
        self.places = places
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()

    def start(
        self,
        name: str,
        words: Sequence[str | Path],
        listens: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Start one on the device `name`, and wait until it `listens` at its device's port."""
        command = self.places.command(name, [str(word) for word in words])
        with self._log(name).open("wb") as log:
            self._running[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **(env or {})}
            )
        until = time.monotonic() + _START_S
        port = int(host_port(self.places, name)[1])
        while listens and not _listens(self._running[name].pid, port):
            if self._running[name].poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{name} does not start: {self.said(name)[-600:]}")
            time.sleep(_POLL_S)

    def said(self, name: str) -> str:
        return self._log(name).read_text(errors="replace")

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"


def host_port(places: Places, name: str) -> tuple[str, str]:
    """The address of a device in two words."""
    host, _, port = places.address(name).rpartition(":")
    return host, port


def _listens(pid: int, port: int) -> bool:
    """Whether anybody listens at `port` in the network namespace of a process. To connect would be to be served."""
    try:
        sockets = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    except OSError:
        return False
    return any(int(one[1].partition(":")[2], 16) == port and one[3] == _LISTEN for one in sockets)
