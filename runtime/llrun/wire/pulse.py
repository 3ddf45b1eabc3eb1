"""The pulse of a session: heartbeats, and the notice of who has fallen silent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from llrun.errors import RunError, lost
from llrun.wire.handshake import send_message
from llrun.wire.protocol import Heartbeat
from llrun.wire.transport import DEAD_AFTER_S, Connection, ConnectionLost

PULSE_S = 0.5
Report = Callable[[RunError], None]


class Pulse:
    """Sends heartbeats on control connections and reports a device that has been silent for too long."""

    def __init__(self, connections: Mapping[str, Connection], report: Report) -> None:
        self._connections = dict(connections)
        self._report = report
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        checked = time.monotonic()
        while not self._stop.wait(PULSE_S):
            now = time.monotonic()
            if now - checked < 4 * PULSE_S:  # else this process itself was suspended: nobody else's fault
                for device, connection in self._connections.items():
                    self._check(device, connection, now)
            checked = now

    def _check(self, device: str, connection: Connection, now: float) -> None:
        silent_s = now - connection.heard_at
        if silent_s > DEAD_AFTER_S:
            self._report(lost(device, f"nothing heard of it for {silent_s:.1f} s"))
            self._stop.set()
            return
        try:
            send_message(connection, Heartbeat())
        except ConnectionLost as error:
            self._report(lost(device, str(error)))
            self._stop.set()
