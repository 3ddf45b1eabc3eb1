"""Knows nothing and connects all the same: `strangers.py ADDRESS idle|reconnect COUNT`. Prints a line once COUNT
connections were made, and goes on until its end."""

from __future__ import annotations

import socket
import sys
import threading
import time
from contextlib import suppress


def come_again(place: tuple[str, int]) -> None:
    """Connect, say nothing for as long as one is let, connect again."""
    while True:
        with suppress(OSError), socket.create_connection(place, timeout=5) as sock:
            sock.settimeout(600)
            sock.recv(1)


if __name__ == "__main__":
    host, _, port = sys.argv[1].rpartition(":")
    place, count = (host, int(port)), int(sys.argv[3])
    held = [socket.create_connection(place, timeout=5) for _ in range(count)]
    if sys.argv[2] == "reconnect":
        for sock in held:
            sock.close()
            threading.Thread(target=come_again, args=(place,), daemon=True).start()
    sys.stdout.write("connected\n")
    sys.stdout.flush()
    time.sleep(600)
