"""A listener at the address given: `echo_listener.py ADDRESS`. Prints where it listens, sends five bytes back."""

from __future__ import annotations

import sys

from llrun.wire.transport import Tcp

if __name__ == "__main__":
    listener = Tcp().listen(sys.argv[1])
    sys.stdout.write(listener.address + "\n")
    sys.stdout.flush()
    connection, data = listener.accept(), bytearray(5)
    connection.read_into(memoryview(data))
    connection.send(bytes(data))
    connection.close(drain_s=5.0)
