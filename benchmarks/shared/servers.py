"""`llrun serve` and other servers as processes of this machine, from their start to their end."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

READY_S, END_S, POLL_S = 300.0, 20.0, 0.01


@dataclass
class Server:
    """`health`: the statuses of GET /health so far, each once in a row; 0 where nobody listened."""

    port: int
    process: subprocess.Popen[bytes]
    health: list[int] = field(default_factory=list)

    def ask_health(self) -> int:
        status, _ = get(self.port, "/health")
        if self.health[-1:] != [status]:
            self.health.append(status)
        return status

    def until_healthy(self, status: int = 200, limit_s: float = READY_S) -> None:
        """Ask until it says so. Raises TimeoutError, and RuntimeError where the server has ended."""
        until = time.monotonic() + limit_s
        while self.ask_health() != status:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}")
            if time.monotonic() > until:
                raise TimeoutError(f"the server was not {status} within {limit_s:g} s: {self.health}")
            time.sleep(POLL_S)

    def children(self) -> dict[int, list[str]]:
        """Its processes, with their command lines."""
        pids = list[str]()
        for thread in Path(f"/proc/{self.process.pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
                pids += (thread / "children").read_text().split()
        return {int(pid): Path(f"/proc/{pid}/cmdline").read_text().split("\0") for pid in pids}

    def worker(self, device: str) -> int:
        """The process of a device."""
        (found,) = [pid for pid, words in self.children().items() if device in words]
        return found

    def stop(self) -> int:
        """Interrupt it, as Ctrl-C does; its exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(END_S)


def get(port: int, path: str) -> tuple[int, str]:
    """A status and a body; 0 where nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    except (ConnectionError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def serving(command: Sequence[str | Path], port: int, errors: Path) -> Iterator[Server]:
    """A server that is being started; it is gone afterwards. `errors`: the file that its stderr goes to."""
    with errors.open("wb") as told:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=told,
            start_new_session=True,
        )
    try:
        yield Server(port, process)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def llrun_serve(bundle: Path, port: int, *options: str) -> list[str]:
    words = [sys.executable, "-m", "llrun", "serve", str(bundle), "--local", "--port", str(port)]
    return [*words, *options]
