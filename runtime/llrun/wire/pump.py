"""Connections that are read by the thread that waits for what they bring, with nobody in between.

Handing what one thread has read to another takes several times as long as reading it: both want the interpreter, and
the system wakes one after the other.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from time import perf_counter

Read = Callable[[], None]
SPIN_S = 2e-4  # longer waits are no shorter for it
TRUST, ONE_IN = 8, 64  # misses in a row until it spins for one wait in so many


class Pump:
    """One thread waits, and reads what comes meanwhile; others add connections, take them back, and wake it.

    A connection is a file's number and a function that reads of it what is there, without waiting.
    """

    def __init__(self) -> None:
        self._reads: dict[int, Read] = {}
        self._poll = select.poll()
        self._lock = Lock()
        self._woken, self._waker = socket.socketpair()
        for end in (self._woken, self._waker):
            end.setblocking(False)
        self._poll.register(self._woken.fileno(), select.POLLIN)
        self._asleep = False
        self._misses = self._waits = 0

    @property
    def reads(self) -> bool:
        """Whether any connection is read here."""
        return bool(self._reads)

    def add(self, number: int, read: Read) -> None:
        """Read the connection from now on."""
        with self._lock:
            self._reads[number] = read
            self._poll.register(number, select.POLLIN)
        self.wake()

    def discard(self, number: int, read: Read | None = None) -> None:
        """Read it no more; before it is closed, as its number may be another's then. With `read`: if that is still who
        reads it."""
        with self._lock:
            if number in self._reads and read in (None, self._reads[number]):
                del self._reads[number]
                self._poll.unregister(number)

    def wake(self) -> None:
        """Have `wait` look whether it is ready. From any thread."""
        if self._asleep:
            with suppress(OSError):  # it is full of wakings, or closed
                self._waker.send(b"!")

    def wait(self, ready: Callable[[], bool]) -> None:
        """Read what comes until it is `ready`, which it may be at once."""
        if self._reads and not ready() and self._spins():
            self._spin(ready)
        while not ready():
            self._asleep = True
            try:
                if ready():  # by who saw nobody asleep
                    return
                numbers = self._poll.poll()
            finally:
                self._asleep = False
            self._read(numbers)

    def look(self) -> None:
        """Read what is there."""
        if self._reads:
            self._read(self._poll.poll(0))

    def _spins(self) -> bool:
        self._waits += 1
        return self._misses < TRUST or self._waits % ONE_IN == 0

    def _spin(self, ready: Callable[[], bool]) -> None:
        """Look again and again for a moment. A core that slept takes long to wake; one that is shared is left to who
        can use it. Where it was in vain several times in a row, it is tried now and then alone."""
        until = perf_counter() + SPIN_S
        while perf_counter() < until:
            self._read(self._poll.poll(0))
            if ready():
                self._misses = 0
                return
            os.sched_yield()
        self._misses += 1

    def close(self) -> None:
        """End what wakes it; nobody waits any more."""
        self._waker.close()
        self._woken.close()

    def _read(self, numbers: list[tuple[int, int]]) -> None:
        for number, _ in numbers:
            read = self._reads.get(number)
            if read is not None:
                read()
            elif number == self._woken.fileno():
                with suppress(BlockingIOError):
                    self._woken.recv(1024)
