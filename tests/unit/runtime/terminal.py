"""A program at a terminal of its own, driven as a person would."""

from __future__ import annotations

import codecs
import contextlib
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

LIMIT_S = 30.0
INTERRUPT, END = "\x03", "\x04"


class Terminal:
    """`shown`: all that the program has written."""

    def __init__(self, ours: int, process: subprocess.Popen[bytes]) -> None:
        self._ours = ours
        self._read = 0
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self.process = process
        self.shown = ""

    def type(self, text: str) -> None:
        data = text.encode()
        while data:  # a terminal takes some thousand bytes at a time
            self._take(0.0)
            if select.select([], [self._ours], [], 0.01)[1]:
                data = data[os.write(self._ours, data[:512]) :]

    def until(self, text: str) -> str:
        """What is shown up to `text`, from where the last such wait ended."""
        end = time.monotonic() + LIMIT_S
        while text not in self.shown[self._read :]:
            assert time.monotonic() < end, self.shown
            self._take(0.1)
        start, self._read = self._read, self.shown.index(text, self._read) + len(text)
        return self.shown[start : self._read]

    def exit_code(self) -> int:
        end = time.monotonic() + LIMIT_S
        while self.process.poll() is None and time.monotonic() < end:
            self._take(0.1)
        self._take(0.0)
        return self.process.wait(0)

    def by_lines(self) -> bool:
        """Whether the terminal reads by lines."""
        return bool(termios.tcgetattr(self._ours)[3] & termios.ICANON)

    def _take(self, seconds: float) -> None:
        """Read what there is."""
        if select.select([self._ours], [], [], seconds)[0]:
            self.shown += self._decode(os.read(self._ours, 65536)).replace("\r\n", "\n")


@contextlib.contextmanager
def at_terminal(script: Path, *arguments: object, term: str = "dumb") -> Iterator[Terminal]:
    """Run a Python script whose three streams are a terminal, which it must make its own."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(script), *map(str, arguments)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "TERM": term},
    )
    try:
        yield Terminal(ours, process)
    finally:
        process.kill()
        process.wait()
        os.close(theirs)
        os.close(ours)
