"""Connections between devices: a small interface, and TCP. Encryption will be another implementation of
the same."""

from __future__ import annotations

import socket
import struct
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Protocol

from llrun.wire.addresses import (
    Endpoint,
    host_of,
    look_up,
    parse_address,
    peer_endpoints,
    show_address,
    why_not_listening,
    why_not_reached,
)
from llrun.wire.pace import Pace, read_pace

# How long bytes may stay unacknowledged, and an idle peer's system silent: longer than the pulse's patience,
# which names the device, and long enough for a connection to recover from a network that is gone for seconds.
GIVE_UP_S = 10.0
RESEND_MS = 1000
# Linux's numbers, which the socket module lacks. Without them the time between two attempts doubles from 0.2 s:
# after three seconds without a network, another three would pass before the next.
TCP_THIN_LINEAR_TIMEOUTS, TCP_RTO_MAX_MS = 16, 44
QUEUE_FRAMES = 256
SEND_DEADLINE_S = 30.0
BACKLOG = 128
TIMEVAL = struct.Struct("ll")
Buffer = bytes | memoryview


class ConnectionLost(OSError):
    """The other side is gone, or does not take what is sent to it."""


class Connection(Protocol):
    """A byte stream with a bounded queue of outgoing frames. `heard_at`: time.monotonic() of the last
    byte. `peer`: the host at the other end, an IP address."""

    heard_at: float
    peer: str

    def send(self, *parts: Buffer) -> None:
        """Send or queue one frame without copying it; its memory must not change. Raises ConnectionLost."""

    def read_into(self, view: memoryview) -> None:
        """Fill `view`. Raises ConnectionLost."""

    def read_now(self, view: memoryview) -> int:
        """Read what is there, as far as `view` goes: how many bytes, 0 for none yet. Raises ConnectionLost."""

    @property
    def number(self) -> int:
        """The file's number, by which the system says that there is something to read; negative where it is closed."""

    def deadline(self, seconds: float | None) -> None:
        """All reads from now on end `seconds` from now; None: never."""

    def pace(self) -> Pace:
        """What its traffic has shown of latency and rate. Costs some microseconds."""

    def close(self, drain_s: float = 0.0) -> None:
        """End it both ways, `drain_s` at most for what is queued; who reads or sends gets ConnectionLost."""


class Listener(Protocol):
    address: str

    def accept(self) -> Connection:
        """Wait for a connection. Raises ConnectionLost once closed."""

    def close(self) -> None: ...


class Transport(Protocol):
    def connect(self, address: str, timeout_s: float) -> Connection: ...
    def listen(self, address: str) -> Listener: ...


class TcpConnection:
    """A blocking socket. Frames go out at once when the socket takes them; the rest waits for a writer
    thread."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self.peer = peer
        self._socket = sock
        self._queue: deque[Buffer] = deque()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._writer: threading.Thread | None = None
        self._closed = False
        self._until: float | None = None
        self._bytes_per_s = 0.0
        self.heard_at = time.monotonic()
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _set_patience(sock)

    def send(self, *parts: Buffer) -> None:
        with self._lock:
            self._wait_for_room()
            rest = list(parts)
            if not self._queue:
                rest = self._send_now(rest)
            if rest:
                self._queue.extend(rest)
                self._start_writer()
                self._changed.notify_all()

    def read_into(self, view: memoryview) -> None:
        done = 0
        while done < len(view):
            try:
                if self._until is not None:
                    self._limit_read(self._until - time.monotonic())
                count = self._socket.recv_into(view[done:])
            except OSError as error:
                raise ConnectionLost(_reason(error)) from error
            if count == 0:
                raise ConnectionLost("it closed the connection")
            done += count
            self.heard_at = time.monotonic()

    def read_now(self, view: memoryview) -> int:
        try:
            count = self._socket.recv_into(view, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise ConnectionLost(_reason(error)) from error
        if count == 0:
            raise ConnectionLost("it closed the connection")
        self.heard_at = time.monotonic()
        return count

    @property
    def number(self) -> int:
        return self._socket.fileno()

    def deadline(self, seconds: float | None) -> None:
        self._until = None if seconds is None else time.monotonic() + seconds
        self._limit_read(0.0)

    def pace(self) -> Pace:
        now = read_pace(self._socket)
        self._bytes_per_s = now.bytes_per_s or self._bytes_per_s  # the newest that says anything
        return Pace(now.latency_s, self._bytes_per_s)

    def close(self, drain_s: float = 0.0) -> None:
        with self._lock:
            if drain_s and not self._closed:
                self._changed.wait_for(lambda: self._closed or not self._queue, drain_s)
            self._closed = True
            self._queue.clear()
            self._changed.notify_all()
        with suppress(OSError):  # it was already gone
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _limit_read(self, seconds: float) -> None:
        """Let one read take `seconds`; 0: any time. Not settimeout, which would make sends non-blocking
        too."""
        if self._until is not None and seconds <= 0:
            seconds = 1e-3
        micros = int(seconds * 1e6)
        limit = TIMEVAL.pack(micros // 1_000_000, micros % 1_000_000)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)

    def _wait_for_room(self) -> None:
        if not self._queue and not self._closed:
            return
        room = self._changed.wait_for(
            lambda: self._closed or len(self._queue) < QUEUE_FRAMES, SEND_DEADLINE_S
        )
        if self._closed:
            raise ConnectionLost("the connection is closed")
        if not room:
            raise ConnectionLost(
                f"it took nothing of {QUEUE_FRAMES} queued frames in {SEND_DEADLINE_S:.0f} s"
            )

    def _send_now(self, parts: list[Buffer]) -> list[Buffer]:
        """Send what the socket takes without waiting; return what is left."""
        try:
            sent = self._socket.sendmsg(parts, (), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return parts
        except OSError as error:
            raise ConnectionLost(_reason(error)) from error
        return _remaining(parts, sent)

    def _start_writer(self) -> None:
        if self._writer is None:
            self._writer = threading.Thread(target=self._write, name="writer", daemon=True)
            self._writer.start()

    def _write(self) -> None:
        while True:
            with self._lock:
                self._changed.wait_for(lambda: self._closed or self._queue)
                if self._closed:
                    return
                part = self._queue[0]
            try:
                self._socket.sendall(part)
            except OSError:
                self.close()  # the reader of this connection reports it
                return
            with self._lock:
                if self._queue:
                    self._queue.popleft()
                self._changed.notify_all()


class TcpListener:
    """A listening socket; `address` holds the port that was really bound."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.address = show_address(sock.getsockname())

    def accept(self) -> TcpConnection:
        while True:
            try:
                sock, peer = self._socket.accept()
                return TcpConnection(sock, host_of(peer))
            except ConnectionError:  # it went away between its arrival and now
                continue
            except OSError as error:
                raise ConnectionLost(_reason(error)) from error

    def close(self) -> None:
        with suppress(OSError):  # it wakes accept, though the system calls the socket not connected
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class Tcp:
    """The Transport over TCP, unencrypted: for loopback and networks that are trusted."""

    def connect(self, address: str, timeout_s: float) -> TcpConnection:
        """Connect to the first of its addresses that answers. Raises ConnectionLost that says why none does,
        RunError R101 for what is no address of a device."""
        try:
            endpoints = peer_endpoints(address)
        except OSError as error:
            raise ConnectionLost(why_not_reached(error)) from error
        until, reasons = time.monotonic() + timeout_s, list[str]()
        for endpoint in endpoints:
            left_s = until - time.monotonic()
            try:
                sock = _connected(endpoint, max(left_s / (len(endpoints) - len(reasons)), 1e-3))
                return TcpConnection(sock, host_of(endpoint.sockaddr))
            except OSError as error:
                reasons.append(why_not_reached(error))
        raise ConnectionLost("; ".join(dict.fromkeys(reasons)))

    def listen(self, address: str) -> TcpListener:
        """Listen there and nowhere else: on the first address of a name, IPv4 before IPv6. Raises RunError
        R303."""
        host, port = parse_address(address)
        try:
            endpoint = min(look_up(host, port), key=lambda each: each.family != socket.AF_INET)
            return TcpListener(_listening(endpoint))
        except OSError as error:
            raise why_not_listening(address, error) from error


def _connected(endpoint: Endpoint, timeout_s: float) -> socket.socket:
    sock = socket.socket(endpoint.family, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        sock.connect(endpoint.sockaddr)
    except OSError:
        sock.close()
        raise
    return sock


def _listening(endpoint: Endpoint) -> socket.socket:
    sock = socket.socket(endpoint.family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if endpoint.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(endpoint.sockaddr)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _set_patience(sock: socket.socket) -> None:
    """How often TCP tries again, and when it gives up."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", 1),
        ("TCP_KEEPINTVL", 1),
        ("TCP_KEEPCNT", int(GIVE_UP_S)),
        ("TCP_USER_TIMEOUT", int(GIVE_UP_S * 1000)),
    ):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    if sys.platform == "linux":
        for number, value in ((TCP_THIN_LINEAR_TIMEOUTS, 1), (TCP_RTO_MAX_MS, RESEND_MS)):
            with suppress(OSError):  # the second is of 2025
                sock.setsockopt(socket.IPPROTO_TCP, number, value)


def _reason(error: OSError) -> str:
    if isinstance(error, BlockingIOError | TimeoutError):
        return "no answer in time"
    return (error.strerror or str(error)).lower()


def _remaining(parts: list[Buffer], sent: int) -> list[Buffer]:
    rest: list[Buffer] = []
    for part in parts:
        if sent >= len(part):
            sent -= len(part)
        else:
            rest.append(memoryview(part)[sent:])
            sent = 0
    return rest
