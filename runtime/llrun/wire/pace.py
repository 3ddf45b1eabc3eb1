"""How fast a connection is, as Linux's TCP counts it anyway: read, never measured by sending something."""

from __future__ import annotations

import socket
import struct
import sys
from typing import NamedTuple

MICROSECOND = 1e-6
UNKNOWN_US = 0xFFFFFFFF  # no round trip was timed yet
ASKED_BYTES = 256
# struct tcp_info of linux/tcp.h: what later systems have more stands after these.
FLAGS_AT, RTT_AT, MIN_RTT_AT, DELIVERY_RATE_AT = 7, 68, 148, 160
APP_LIMITED = 1  # of the flags, on a little-endian machine: there was too little to send to tell the rate
UINT32, UINT64 = struct.Struct("<I"), struct.Struct("<Q")


class Pace(NamedTuple):
    """`latency_s`: one way, half the shortest round trip. `bytes_per_s`: delivered. Both 0 where it is not known."""

    latency_s: float = 0.0
    bytes_per_s: float = 0.0


def pace_of(info: bytes) -> Pace:
    """What `info`, a struct tcp_info or the part of it that this system has, says. A rate that was bound by how little
    there was to send is none."""
    shortest = _at(UINT32, info, MIN_RTT_AT)
    if shortest in (0, UNKNOWN_US):
        shortest = _at(UINT32, info, RTT_AT)
    rate = _at(UINT64, info, DELIVERY_RATE_AT)
    if len(info) > FLAGS_AT and info[FLAGS_AT] & APP_LIMITED:
        rate = 0
    return Pace(shortest * MICROSECOND / 2, float(rate))


def read_pace(sock: socket.socket) -> Pace:
    """The pace of a TCP socket; nothing where this system does not say, or the socket is closed."""
    if sys.platform != "linux" or sys.byteorder != "little":
        return Pace()
    try:
        return pace_of(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, ASKED_BYTES))
    except OSError:
        return Pace()


def _at(field: struct.Struct, info: bytes, start: int) -> int:
    if len(info) < start + field.size:
        return 0
    (value,) = field.unpack_from(info, start)
    return int(value)
