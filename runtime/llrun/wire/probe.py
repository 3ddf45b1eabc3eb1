"""Measures a link to a worker: its round trip, and what it carries either way."""

from __future__ import annotations

import time
from dataclasses import dataclass

from llrun.wire.handshake import dial, read_message, send_message
from llrun.wire.messages import PROBE_LIMIT, Goodbye, Hello, Probe, Probed
from llrun.wire.protocol import ProtocolError
from llrun.wire.transport import Connection, Transport

ROUND_TRIPS = 8
FIRST_BYTES, MOST_BYTES = 1 << 16, 1 << 23
LONG_S, WAY_S = 0.2, 1.5  # a transfer that takes so long tells the rate; no way is measured for longer
SETTLED = (
    1.15  # a connection that begins slowly becomes so much faster at least from one transfer to the next
)
PROBE_S = 10.0


@dataclass(frozen=True)
class Probing:
    """`version`, `state`: of llrun there, and what it does. `latency_s`: one way, half the shortest round trip.
    `there_bytes_per_s`, `back_bytes_per_s`: what the link carried to it and from it."""

    version: str
    state: str
    latency_s: float
    there_bytes_per_s: float
    back_bytes_per_s: float


def probe(
    transport: Transport, device: str, address: str, bundle: str, sender: str, timeout_s: float
) -> Probing:
    """Measure the link to `device`, which listens at `address`: some seconds, some megabytes at most.

    Raises ConnectionLost when nothing answers there, or not any more; Refusal, RunError as `dial`.
    """
    hello = Hello(bundle, sender, "probe")
    connection = dial(transport, device, address, hello, timeout_s, answer_s=timeout_s)
    try:
        connection.deadline(PROBE_S)
        return _measured(connection)
    finally:
        connection.close(drain_s=timeout_s)


def _measured(connection: Connection) -> Probing:
    first, trips = _exchange(connection, 0, 0)[1], []
    for _ in range(ROUND_TRIPS):
        trips.append(_exchange(connection, 0, 0)[0])
    there = _rate(connection, min(trips), there=True)
    back = _rate(connection, min(trips), there=False)
    # What the system counts leaves out for how long the other side's threads took.
    shortest = min(2 * connection.pace().latency_s or min(trips), min(trips))
    send_message(connection, Goodbye())
    return Probing(first.version, first.state, shortest / 2, there, back)


def _rate(connection: Connection, trip_s: float, there: bool) -> float:
    """Bytes a second of transfers that grow until one is long, and the next no quicker."""
    size, best, until = FIRST_BYTES, 0.0, time.monotonic() + WAY_S
    while True:
        seconds, _ = _exchange(connection, size if there else 0, 0 if there else size)
        rate = size / max(seconds - trip_s, seconds / 8)
        settled, best = rate < SETTLED * best, max(best, rate)
        if time.monotonic() > until or (settled and (seconds > LONG_S or size == MOST_BYTES)):
            return best
        if seconds < LONG_S:
            size = min(4 * size, MOST_BYTES)


def _exchange(connection: Connection, there: int, back: int) -> tuple[float, Probed]:
    """Seconds until so many bytes went there, or came back, and the last answer."""
    began, pieces = time.monotonic(), max(1, -(-max(there, back) // PROBE_LIMIT))
    payload, wanted = bytes(min(there, PROBE_LIMIT)), min(back, PROBE_LIMIT)
    for _ in range(pieces):
        send_message(connection, Probe(payload, wanted))
    answers = [_answer(connection) for _ in range(pieces)]
    return time.monotonic() - began, answers[-1]


def _answer(connection: Connection) -> Probed:
    answer = read_message(connection)
    if not isinstance(answer, Probed):
        raise ProtocolError(f"{type(answer).__name__} came where the answer to a probe was due")
    return answer
