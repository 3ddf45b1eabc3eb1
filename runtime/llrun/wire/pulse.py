"""The pulse of a session: heartbeats, and the notice of who has fallen silent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from llrun.wire.handshake import send_message
from llrun.wire.messages import Heartbeat
from llrun.wire.transport import Connection, ConnectionLost

PULSE_S = 0.25
# The head's patience with a worker: one that is frozen is noticed within two seconds, one that was for half a second
# is not missed.
HEAD_PATIENCE_S = 1.75
# A worker's with its head: it has nothing better to do, but the next head is to find it free within five seconds.
WORKER_PATIENCE_S = 4.0
SUSPENDED_S = 0.75  # so long between two beats: this process itself stood still
Silent = Callable[[str, str], None]  # device, and why it is thought gone
Back = Callable[[str], None]


class Pulse:
    """Beats on every control connection that it watches, however long others are waited for.

    `silent(device, reason)` is told once of a device of which nothing has been heard for `patience_s`, and
    `back(device)` once it is heard again: whoever cannot do without it may wait. The beats go on meanwhile. A
    connection that ends is none of this: who reads it hears so. Both are called on the pulse's own thread.

    While this process stands still nobody is heard, which is nobody else's fault: silence counts anew then.
    """

    def __init__(self, silent: Silent, back: Back, patience_s: float) -> None:
        self._silent = silent
        self._back = back
        self._patience_s = patience_s
        self._watched: dict[str, Connection] = {}
        self._missed: dict[str, float] = {}  # when it was told
        self._awake_since = 0.0
        self._beating = False
        self._changed = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def watch(self, device: str, connection: Connection) -> None:
        """Beat on this connection too from now on, in place of the one with `device` that there may have been."""
        with self._changed:
            self._watched[device] = connection
            self._missed.pop(device, None)
            if not self._beating:
                self._beating = True
                self._thread.start()

    def forget(self, device: str) -> None:
        """Watch `device` no more."""
        with self._changed:
            self._watched.pop(device, None)
            self._missed.pop(device, None)

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        checked = time.monotonic()
        while not self._stop.wait(PULSE_S):
            now = time.monotonic()
            if now - checked >= SUSPENDED_S:
                self._awake_since = now
            checked = now
            with self._changed:
                watched = list(self._watched.items())
            for device, connection in watched:
                self._beat(device, connection)
                self._check(device, connection, now)

    def _beat(self, device: str, connection: Connection) -> None:
        try:
            send_message(connection, Heartbeat())
        except ConnectionLost:
            connection.close()  # who reads it hears so now, if not before
            with self._changed:
                if self._watched.get(device) is connection:
                    del self._watched[device]

    def _check(self, device: str, connection: Connection, now: float) -> None:
        silent_s = now - max(connection.heard_at, self._awake_since)
        with self._changed:
            if self._watched.get(device) is not connection:
                return
            told_at = self._missed.get(device)
            heard = told_at is not None and connection.heard_at > told_at
            missed = told_at is None and silent_s > self._patience_s
            if heard:
                del self._missed[device]
            elif missed:
                self._missed[device] = now
        if heard:
            self._back(device)
        elif missed:
            self._silent(device, f"nothing heard of it for {silent_s:.1f} s")
