"""The door of a worker: connections are accepted, and their hello is read, in spite of whoever else knocks."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from llrun.errors import RunError
from llrun.wire.handshake import HANDSHAKE_S, read_hello, send_message
from llrun.wire.messages import Hello, Refused
from llrun.wire.transport import Connection, ConnectionLost, Listener

MAX_HANDSHAKES = 64
ACCEPT_PAUSE_S = 0.2
LEAVE_S = 0.05
DRAIN_S = 0.5
REASON_LIMIT = 4096
Note = Callable[[str], None]
Admit = Callable[[Hello, Connection], None]


class Door:
    """Accepts connections, reads the hello of each on a thread of its own, and hands both to `admit`, which raises
    RunError for what it refuses; the other side is told.

    There are MAX_HANDSHAKES threads at most, and each reads one small message. When all are taken, the connection
    that has been silent for the longest among those of the address that holds the most makes room. Whoever knows
    what to say says it at once, so the owner gets in however many others connect, say nothing, and come again.
    """

    def __init__(self, listener: Listener, admit: Admit, note: Note) -> None:
        self._listener = listener
        self._admit = admit
        self._note = note
        self._changed = threading.Condition()
        self._busy = 0
        self._silent: dict[Connection, None] = {}  # whose hello has not come, the oldest first

    def open(self) -> None:
        threading.Thread(target=self._accept, name="accept", daemon=True).start()

    def _accept(self) -> None:
        told = False
        while True:
            try:
                connection = self._listener.accept()
            except ConnectionLost as error:
                if not told:
                    self._note(f"cannot accept connections: {error}")
                told = True
                time.sleep(ACCEPT_PAUSE_S)
                continue
            told = False
            self._make_room()
            with self._changed:
                self._busy += 1
                self._silent[connection] = None
            threading.Thread(
                target=self._handshake, args=(connection,), name="handshake", daemon=True
            ).start()

    def _make_room(self) -> None:
        with self._changed:
            while self._busy >= MAX_HANDSHAKES:
                if self._silent:
                    leaving = who_leaves({each: each.peer for each in self._silent})
                    del self._silent[leaving]
                    leaving.close()
                self._changed.wait(LEAVE_S)

    def _handshake(self, connection: Connection) -> None:
        try:
            connection.deadline(HANDSHAKE_S)
            hello = read_hello(connection)
            with self._changed:
                self._silent.pop(connection, None)
            self._admit(hello, connection)
        except RunError as error:
            with suppress(ConnectionLost):
                send_message(connection, Refused(error.code, error.message[:REASON_LIMIT]))
            connection.close(drain_s=DRAIN_S)
        except ConnectionLost:
            connection.close()
        finally:
            with self._changed:
                self._silent.pop(connection, None)
                self._busy -= 1
                self._changed.notify_all()


def who_leaves(sources: dict[Connection, str]) -> Connection:
    """The first of `sources` (connection to the address it comes from, the oldest first) among those of the address
    that holds the most."""
    held = Counter(sources.values())
    most = max(held.values())
    return next(connection for connection, source in sources.items() if held[source] == most)
