"""Answers other devices of the bundle that measure their link to this one: whatever it does meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable

from llrun.errors import INTERNAL, RunError
from llrun.version import VERSION
from llrun.wire.handshake import read_message, send_message
from llrun.wire.messages import Goodbye, Probe, Probed, Welcome
from llrun.wire.protocol import BUSY, ProtocolError
from llrun.wire.transport import Connection

PROBING_S = 15.0  # longer than who measures takes
DRAIN_S = 0.5


class Probing:
    """One is answered at a time: two would measure each other."""

    def __init__(self, device: str, state: Callable[[], str]) -> None:
        self._device = device
        self._state = state
        self._free = threading.Lock()

    def answer(self, connection: Connection) -> None:
        """Echo until the other side has what it wants. Raises RunError for one who comes while another is answered,
        ProtocolError, ConnectionLost."""
        if not self._free.acquire(blocking=False):
            raise RunError(BUSY, "another device measures its link to it", INTERNAL)
        try:
            send_message(connection, Welcome(self._device))
            connection.deadline(PROBING_S)
            while isinstance(asked := read_message(connection), Probe):
                send_message(connection, Probed(bytes(asked.back), VERSION, self._state()))
            if not isinstance(asked, Goodbye):
                raise ProtocolError(f"{type(asked).__name__} came where a probe was due")
        finally:
            self._free.release()
        connection.close(drain_s=DRAIN_S)
