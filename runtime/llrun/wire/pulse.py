"""The pulse of a session: heartbeats, and the notice of who has fallen silent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from llrun.errors import RunError, lost
from llrun.wire.handshake import send_message
from llrun.wire.messages import Heartbeat
from llrun.wire.transport import Connection, ConnectionLost

# A network that is gone for three seconds is borne. TCP sends again what was lost in them up to 1.6 s after
# they have ended (transport.py), so a device is given up after five, and a frozen one is noticed then.
DEAD_AFTER_S = 5.0
PULSE_S = 0.25
SUSPENDED_S = 1.5
Report = Callable[[RunError], None]


class Pulse:
    """Beats on every control connection from the moment it is made, however long others are waited for,
    and reports a device that has been silent for DEAD_AFTER_S, once."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._watched: dict[str, Connection] = {}
        self._beating = False
        self._changed = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def watch(self, device: str, connection: Connection) -> None:
        """Beat on this connection too, from now on."""
        with self._changed:
            self._watched[device] = connection
            if not self._beating:
                self._beating = True
                self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        checked = time.monotonic()
        while not self._stop.wait(PULSE_S):
            now = time.monotonic()
            if now - checked < SUSPENDED_S:  # else this process itself was suspended: nobody else's fault
                with self._changed:
                    watched = list(self._watched.items())
                for device, connection in watched:
                    self._check(device, connection, now)
            checked = now

    def _check(self, device: str, connection: Connection, now: float) -> None:
        silent_s = now - connection.heard_at
        if silent_s > DEAD_AFTER_S:
            self._give_up(device, f"nothing heard of it for {silent_s:.1f} s")
            return
        try:
            send_message(connection, Heartbeat())
        except ConnectionLost as error:
            self._give_up(device, str(error))

    def _give_up(self, device: str, reason: str) -> None:
        with self._changed:
            del self._watched[device]
        self._report(lost(device, reason))
