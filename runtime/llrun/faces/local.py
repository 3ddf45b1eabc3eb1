"""Every worker of a bundle as a process of this machine, over loopback, for as long as the head lives."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from llrun.errors import INTERNAL, USAGE, RunError
from llrun.faces.processes.noted import forget_process

START_S = 600.0
END_S = 3.0
PR_SET_PDEATHSIG = 1
Addresses = Callable[[], dict[str, str]]


class Listening(msgspec.Struct, tag="listening"):
    """A worker's line to the head that started it: it is ready at `address`."""

    address: str


class Unable(msgspec.Struct, tag="unable"):
    """A worker's line instead: why it cannot start."""

    code: str
    message: str
    exit_code: int


class Announcer:
    """A worker's side of the pipe to the process that started it; `text`: `FD:PID`, the pipe and that process."""

    def __init__(self, text: str) -> None:
        descriptor, parent = (int(part) for part in text.split(":"))
        self._pipe: int | None = descriptor
        self._parent = parent

    def listening(self, address: str) -> None:
        self._tell(Listening(address))

    def unable(self, error: RunError) -> bool:
        """Pass on why this worker ends; False when it has listened already, and nobody waits for a reason here."""
        return self._tell(Unable(error.code, error.message, error.exit_code))

    def end_with_parent(self) -> None:
        """Be killed when the parent ends. Ctrl-C at the terminal is for the head."""
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self._parent:  # it ended before the request was made
            raise SystemExit(1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _tell(self, line: Listening | Unable) -> bool:
        if self._pipe is None:
            return False
        with os.fdopen(self._pipe, "wb") as pipe:
            pipe.write(msgspec.json.encode(line) + b"\n")
        self._pipe = None
        return True


@contextlib.contextmanager
def reasons_told(announcer: Announcer | None) -> Iterator[None]:
    """What ends the body before the worker listens is told to the head that started it, which prints it."""
    try:
        yield
    except RunError as error:
        if announcer is None or not announcer.unable(error):
            raise
        raise SystemExit(error.exit_code) from error


@contextlib.contextmanager
def workers(path: Path, devices: Sequence[str], options: Sequence[str]) -> Iterator[Addresses]:
    """Start a worker for each of `devices` on a port of its own choosing. Calling what is yielded waits
    until all listen, and gives their addresses; it raises RunError R307 when one ends before that.

    The processes end with the context, and with this process however it ends: each asks the system to be
    killed when its parent is.
    """
    children: list[tuple[str, subprocess.Popen[bytes], int]] = []
    try:
        for device in devices:
            children.append((device, *_spawn(path, device, options)))
        until = time.monotonic() + START_S
        yield lambda: {
            device: _await_address(device, process, pipe, until) for device, process, pipe in children
        }
    finally:
        _end([process for _, process, _ in children])
        for _, _, pipe in children:
            os.close(pipe)


def _spawn(path: Path, device: str, options: Sequence[str]) -> tuple[subprocess.Popen[bytes], int]:
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "llrun", str(path), "--device", device, "--listen", "127.0.0.1:0"]
    command += ["--announce", f"{writing}:{os.getpid()}", *options]
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(writing,))
    except OSError as error:
        os.close(reading)
        raise RunError("R307", f"cannot start device {device}: {error}", INTERNAL) from error
    finally:
        os.close(writing)
    return process, reading


def _await_address(device: str, process: subprocess.Popen[bytes], pipe: int, until: float) -> str:
    """What the worker writes into its pipe when it listens. Raises RunError for the reason that it gives instead."""
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([pipe], [], [], max(until - time.monotonic(), 0))
        if not ready:
            raise RunError("R307", f"device {device} did not listen within {START_S:.0f} s", INTERNAL)
        piece = os.read(pipe, 4096)
        if not piece:
            raise _early_end(device, process)
        line += piece
    said = msgspec.json.decode(line, type=Listening | Unable)
    if isinstance(said, Unable):
        raise RunError(said.code, f"device {device}: {said.message}", said.exit_code, device)
    return said.address


def _early_end(device: str, process: subprocess.Popen[bytes]) -> RunError:
    code = process.wait(END_S)
    if code == -signal.SIGILL:
        hint = "its library has instructions that this machine lacks: choose another target for it"
        return RunError("R206", f"device {device}: {hint}")
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    if code == -signal.SIGKILL:
        how += ", as the system ends what takes more memory than there is"
    return RunError(
        "R307", f"device {device} ended before it listened ({how})", USAGE if code == USAGE else INTERNAL
    )


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """A worker holds nothing that must be saved, and a frozen one hears nothing less than this."""
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()
        forget_process(process.pid)
