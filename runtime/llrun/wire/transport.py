"""Connections between devices: a small interface, and TCP. Encryption will be another implementation of
the same."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Protocol

from llrun.errors import RunError

# A sender whose bytes stay unacknowledged, or a silent peer, is given up after this long; with the
# monitor's period it keeps "a lost worker ends the request" under five seconds.
DEAD_AFTER_S = 3.0
QUEUE_FRAMES = 256
SEND_DEADLINE_S = 30.0
TIMEVAL = struct.Struct("ll")
Buffer = bytes | memoryview


class ConnectionLost(OSError):
    """The other side is gone, or does not take what is sent to it."""


class Connection(Protocol):
    """A byte stream with a bounded queue of outgoing frames. `heard_at`: time.monotonic() of the last
    byte."""

    heard_at: float

    def send(self, *parts: Buffer) -> None:
        """Send or queue one frame without copying it; its memory must not change. Raises ConnectionLost."""

    def read_into(self, view: memoryview) -> None:
        """Fill `view`. Raises ConnectionLost."""

    def deadline(self, seconds: float | None) -> None:
        """All reads from now on end `seconds` from now; None: never."""

    def close(self, drain_s: float = 0.0) -> None:
        """End it both ways, after up to `drain_s` for what is queued; readers and senders get
        ConnectionLost."""


class Listener(Protocol):
    address: str

    def accept(self) -> Connection:
        """Wait for a connection. Raises ConnectionLost once closed."""

    def close(self) -> None: ...


class Transport(Protocol):
    def connect(self, address: str, timeout_s: float) -> Connection: ...
    def listen(self, address: str) -> Listener: ...


def parse_address(address: str) -> tuple[str, int]:
    """`host:port`, `[v6]:port`. Raises RunError R101."""
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise RunError("R101", f"{address!r} is not an address: write HOST:PORT, the port at most 65535")
    return host.strip("[]"), int(port)


class TcpConnection:
    """A blocking socket. Frames go out at once when the socket takes them; the rest waits for a writer
    thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._queue: deque[Buffer] = deque()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._writer: threading.Thread | None = None
        self._closed = False
        self._until: float | None = None
        self.heard_at = time.monotonic()
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _set_keepalive(sock)

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

    def deadline(self, seconds: float | None) -> None:
        self._until = None if seconds is None else time.monotonic() + seconds
        self._limit_read(0.0)

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
        host, port = sock.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def accept(self) -> TcpConnection:
        while True:
            try:
                sock, _ = self._socket.accept()
                return TcpConnection(sock)
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
        host, port = parse_address(address)
        try:
            return TcpConnection(socket.create_connection((host, port), timeout=max(timeout_s, 1e-3)))
        except OSError as error:
            raise ConnectionLost(_reason(error)) from error

    def listen(self, address: str) -> TcpListener:
        """Listen there and nowhere else. Raises RunError R303."""
        host, port = parse_address(address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            return TcpListener(socket.create_server((host, port), family=family, backlog=16))
        except OSError as error:
            raise RunError(
                "R303",
                f"cannot listen on {address}: {_reason(error)}. Give this machine's own with --listen.",
            ) from error


def _set_keepalive(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", 1),
        ("TCP_KEEPINTVL", 1),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", int(DEAD_AFTER_S * 1000)),
    ):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


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
