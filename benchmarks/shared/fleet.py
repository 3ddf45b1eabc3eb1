"""A bundle's workers as processes that can be killed, frozen and started again at the same address."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

from shared.bundles import workers

START_S = 60.0
_POLL_S = 0.01


class Places(Protocol):
    """Where the devices are: addresses, and how a command is run on one."""

    def address(self, name: str) -> str: ...
    def command(self, name: str, words: Sequence[str]) -> list[str]: ...


class Loopback:
    """All devices are processes of this machine, at free ports."""

    def __init__(self, names: Sequence[str]) -> None:
        sockets = [socket.socket() for _ in names]
        try:
            for one in sockets:
                one.bind(("127.0.0.1", 0))
            self._addresses = {
                name: f"127.0.0.1:{one.getsockname()[1]}" for name, one in zip(names, sockets, strict=True)
            }
        finally:
            for one in sockets:
                one.close()

    def address(self, name: str) -> str:
        return self._addresses[name]

    def command(self, name: str, words: Sequence[str]) -> list[str]:
        return list(words)


class Fleet:
    """The workers of `bundle`. What each says goes to a file of `folder`. Use as a context manager."""

    def __init__(self, bundle: Path, places: Places, folder: Path, options: Sequence[str] = ()) -> None:
        self.bundle, self.places, self.names = bundle, places, workers(bundle)
        self._folder = folder
        self._options = list(options)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._starts = dict.fromkeys(self.names, 0)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._running):
            self.kill(name)

    @property
    def peers(self) -> list[str]:
        """Options that say where the workers are."""
        return [word for name in self.names for word in ("--peer", f"{name}={self.places.address(name)}")]

    def start(self, *names: str) -> None:
        """Start those (all, when none is named) that do not run, and wait until they listen."""
        starting = [name for name in names or self.names if name not in self._running]
        for name in starting:
            self._starts[name] += 1
            words = [sys.executable, "-m", "llrun", str(self.bundle / "devices" / name), "--listen"]
            words += [self.places.address(name), *self.peers, *self._options]
            with self.log(name).open("wb") as log:
                self._running[name] = subprocess.Popen(
                    self.places.command(name, words), stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
        until = time.monotonic() + START_S
        for name in starting:
            self._await(name, until)

    def kill(self, name: str, how: int = signal.SIGKILL) -> None:
        """End one at once, without a word; it stays away until it is started again."""
        process = self._running.pop(name)
        process.send_signal(how)
        process.wait()

    def freeze(self, name: str) -> None:
        self._running[name].send_signal(signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        self._running[name].send_signal(signal.SIGCONT)

    def pid(self, name: str) -> int:
        return self._running[name].pid

    @property
    def pids(self) -> Mapping[str, int]:
        return {name: process.pid for name, process in self._running.items()}

    def ended(self) -> list[str]:
        """Workers that ended though nobody killed them."""
        return [name for name, process in self._running.items() if process.poll() is not None]

    def log(self, name: str) -> Path:
        """What the newest process of `name` says."""
        return self._folder / f"{name}-{self._starts[name]}.log"

    def _await(self, name: str, until: float) -> None:
        while b"listening on" not in self.log(name).read_bytes():
            if self._running[name].poll() is not None or time.monotonic() > until:
                said = self.log(name).read_text(errors="replace")
                raise RuntimeError(f"{name} does not listen ({os.linesep.join(said.splitlines()[-12:])})")
            time.sleep(_POLL_S)
