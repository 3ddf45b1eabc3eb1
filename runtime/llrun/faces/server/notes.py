"""What a session says while it is served, kept for those who look at it."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

from llrun.faces.where import Told as SessionTold
from llrun.head.controls import Note

KEPT = 50


@dataclass(frozen=True)
class Line:
    """`at_s`: by the clock, since 1970."""

    number: int
    at_s: float
    text: str


@dataclass(frozen=True)
class Told:
    """What was said lately, the oldest first, and how far weights are read."""

    lines: tuple[Line, ...] = ()
    done_bytes: int = 0
    total_bytes: int = 0


class Notes:
    """Passes on what a session says to `console`, and keeps the newest of it. From any thread."""

    def __init__(self, console: SessionTold) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._lines: deque[Line] = deque(maxlen=KEPT)
        self._count = 0
        self._progress = 0, 0

    @property
    def note(self) -> Note:
        return self._note

    def progress(self, done: int, total: int) -> None:
        self._progress = done, total
        self._console.progress(done, total)

    def told(self) -> Told:
        with self._lock:
            return Told(tuple(self._lines), *self._progress)

    def _note(self, text: str) -> None:
        with self._lock:
            self._count += 1
            self._lines.append(Line(self._count, time.time(), text))
        self._console.note(text)
