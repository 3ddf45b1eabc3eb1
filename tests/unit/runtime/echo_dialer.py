"""`echo_dialer.py ADDRESS`: sends five bytes there and prints what comes back, or why nothing does."""

from __future__ import annotations

import sys

from llrun.wire.transport import ConnectionLost, Tcp

if __name__ == "__main__":
    data = bytearray(5)
    try:
        connection = Tcp().connect(sys.argv[1], 2.0)
        connection.send(b"hello")
        connection.read_into(memoryview(data))
        sys.stdout.write(data.decode())
    except ConnectionLost as error:
        sys.stdout.write(str(error))
