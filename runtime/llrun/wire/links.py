"""The data connections of a session: tensors and cache rows out, and in by a reader for each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection

from llrun.errors import INTERNAL, RunError
from llrun.memory import Array
from llrun.programs.installed import Installed
from llrun.programs.layouts import Limits
from llrun.wire.coding import received, receiving
from llrun.wire.frames import check_tensor, drain, read_table, table_headers
from llrun.wire.handshake import read_header
from llrun.wire.messages import LinkFigures
from llrun.wire.protocol import CACHE, CACHE_ACK, ONE_ROW, ROWS, Header, ProtocolError
from llrun.wire.pump import Pump
from llrun.wire.tokens import TokenReader, is_token
from llrun.wire.transfers import Transfers
from llrun.wire.transport import Connection, ConnectionLost

# A checked tensor and the device it is from: of one step, or a row of several.
Deliver = Callable[[str, tuple[Header, ...], Array], None]
Report = Callable[[RunError], None]
ReportLost = Callable[[str, str], None]  # device, and why
NO_CONNECTION = "there is no data connection"


def never() -> bool:
    return False


class Links:
    """Data connections to other devices, by name. They come and go while the session lasts.

    A tensor that arrives goes to `deliver`, cache rows to `transfers`. What arrives and cannot be is told to `report`.
    A connection that ends is told to `report_lost`, where the program needs it, or the next will (`expect`); what is
    sent to its device from then on is dropped, as steps that it was part of are never done. Both are called on
    whatever thread finds out. A connection is read by a thread of its own; after a single token's tensor, with a
    `pump`, by who waits there, until something else comes.
    """

    def __init__(
        self,
        installed: Installed,
        limits: Limits,
        deliver: Deliver,
        report: Report,
        report_lost: ReportLost,
        transfers: Transfers,
        pump: Pump | None = None,
    ) -> None:
        self._installed = installed
        self._limits = limits
        self._deliver = deliver
        self._report = report
        self._report_lost = report_lost
        self._transfers = transfers
        self._pump = pump
        self._connections: dict[str, Connection] = {}
        self._expected: frozenset[str] = frozenset()
        self._changed = threading.Condition()
        self._closed = False
        self.dropped = 0  # frames for devices that there was no connection with

    @property
    def connected(self) -> frozenset[str]:
        with self._changed:
            return frozenset(self._connections)

    @property
    def needed(self) -> frozenset[str]:
        """The program's neighbours that there is no connection with."""
        with self._changed:
            return frozenset(self._installed.neighbours - self._connections.keys())

    # --- connections come ---

    def attach(self, device: str, connection: Connection) -> None:
        """Take over a connection to `device`, in place of the one that there may be. Raises ProtocolError after the
        session's end."""
        with self._changed:
            self._check_open()
            before = self._connections.pop(device, None)
        self._replaced(device, before)
        with self._changed:
            self._check_open()
            before = self._connections.get(device)
            self._connections[device] = connection
            self._changed.notify_all()
        if before is not None:  # another came in between
            self._replaced(device, before)
        self._start_reading(device, connection)

    def _check_open(self) -> None:
        if self._closed:
            raise ProtocolError("a data connection came after the session's end")

    def _replaced(self, device: str, before: Connection | None) -> None:
        if before is not None:
            self._end_reading(before)
        self._transfers.lost(device)

    def expect(self, devices: Collection[str]) -> None:
        """From now on the loss of a connection to any of these is told, whether or not the program needs it."""
        with self._changed:
            self._expected = frozenset(devices)

    def wait(self, devices: Collection[str], timeout_s: float, given_up: Callable[[], bool] = never) -> None:
        """Wait until all of these are connected, or `given_up` (see `wake`). Raises RunError R302 that names who is
        missing."""

        def over() -> bool:
            return self._closed or given_up() or self._connections.keys() >= set(devices)

        with self._changed:
            if not self._changed.wait_for(over, timeout_s) or self._closed:
                missing = ", ".join(sorted(set(devices) - self._connections.keys()))
                raise RunError(
                    "R302", f"no data connection with {missing} within {timeout_s:.0f} s", INTERNAL
                )

    def wake(self) -> None:
        """Have `wait` look whether it was given up."""
        with self._changed:
            self._changed.notify_all()

    def install(self, installed: Installed) -> None:
        """Admit another program's tensors from now on, and copy nothing more that was for the one before. Neighbours
        without a connection are told as lost."""
        self._transfers.stop()
        with self._changed:
            self._installed = installed
            missing = sorted(installed.neighbours - self._connections.keys())
        for device in missing:
            self._report_lost(device, NO_CONNECTION)

    # --- and go ---

    def retire(self) -> None:
        """From now on a device that closes its connection is no loss."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def close(self) -> None:
        self.retire()
        self._transfers.close()
        for connection in list(self._connections.values()):
            self._end_reading(connection)

    def _gone(self, device: str, connection: Connection, reason: str) -> None:
        """The connection has ended, unless another had taken its place, or the session is over."""
        self._end_reading(connection)
        with self._changed:
            if self._closed or self._connections.get(device) is not connection:
                return
            del self._connections[device]
            told = device in self._installed.neighbours or device in self._expected
        self._transfers.lost(device)
        if told:
            self._report_lost(device, reason)

    # --- frames ---

    def send(self, destination: str, header: bytes, payload: memoryview) -> None:
        """Send a frame, or drop it where there is no connection."""
        connection = self._connections.get(destination)
        if connection is None:
            self.dropped += 1
            return
        try:
            connection.send(header, payload)
        except ConnectionLost as error:
            self.dropped += 1
            self._gone(destination, connection, str(error))

    def _start_reading(self, device: str, connection: Connection, header: Header | None = None) -> None:
        """Have a thread read it; `header`: of the frame that was begun."""
        words = device, connection, header
        threading.Thread(target=self._read, args=words, name=f"read {device}", daemon=True).start()

    def _end_reading(self, connection: Connection) -> None:
        if self._pump is not None:
            self._pump.discard(connection.number)
        connection.close()

    def _read(self, device: str, connection: Connection, header: Header | None) -> None:
        try:
            while not self._read_frame(device, connection, header or read_header(connection)):
                header = None
            self._read_at_the_pump(device, connection)
        except (ConnectionLost, ProtocolError, MemoryError) as error:
            self._tell(device, connection, error)

    def _read_at_the_pump(self, device: str, connection: Connection) -> None:
        """From now on who waits at the pump reads what comes."""
        assert self._pump is not None
        pump, number = self._pump, connection.number
        reader = TokenReader(
            connection,
            lambda header: check_tensor(header, device, self._installed, self._limits),
            lambda header, table, layout: table_headers(header, table, layout, self._limits),
        )

        def read() -> None:
            try:
                found = reader.take()
                if isinstance(found, Header):
                    pump.discard(number, read)
                    self._start_reading(device, connection, found)
                elif found is not None:
                    self._deliver(device, *found)
            except (ConnectionLost, ProtocolError, MemoryError) as error:
                pump.discard(number, read)  # where it was closed it has no number any more
                self._tell(device, connection, error)

        with self._changed:
            if not self._closed and self._connections.get(device) is connection:
                pump.add(number, read)

    def _tell(
        self, device: str, connection: Connection, error: ConnectionLost | ProtocolError | MemoryError
    ) -> None:
        """What ends a connection, or the session, while it is read is told."""
        if isinstance(error, ConnectionLost):
            self._gone(device, connection, str(error))
            return
        self._end_reading(connection)
        if isinstance(error, ProtocolError):
            self._end(RunError(error.code, f"device {device}: {error.message}", INTERNAL))
        else:
            self._end(RunError("R504", f"no memory for what device {device} sends", INTERNAL))

    def _end(self, error: RunError) -> None:
        if not self._closed:
            self._report(error)

    def _read_frame(self, device: str, connection: Connection, header: Header) -> bool:
        """Read the rest of a frame; whether it was a token's, so that others are to be expected."""
        if header.kind == CACHE:
            self._transfers.take(device, header, connection.read_into)
        elif header.kind == CACHE_ACK:
            self._transfers.acknowledged(device, header)
        else:
            self._read_tensor(device, header, connection)
            return self._pump is not None and is_token(header)
        return False

    def _read_tensor(self, device: str, header: Header, connection: Connection) -> None:
        layout = check_tensor(header, device, self._installed, self._limits)
        if layout is None:
            drain(connection, header.length)
            return
        rows = 1 if header.flags & ONE_ROW else header.rows
        several = header.kind == ROWS
        headers = read_table(connection, header, layout, self._limits) if several else (header,)
        array = receiving(layout, rows)
        connection.read_into(array.data.cast("B"))
        self._deliver(device, headers, received(layout, array))

    # --- figures ---

    def figures(self) -> tuple[LinkFigures, ...]:
        """What each connection's traffic has shown so far."""
        with self._changed:
            connections = sorted(self._connections.items())
        copied = self._transfers.rates()
        found = []
        for device, connection in connections:
            pace, rate = connection.pace(), copied.get(device)
            bytes_per_s = pace.bytes_per_s or (rate.bytes / rate.seconds if rate and rate.seconds else 0.0)
            found.append(LinkFigures(device, pace.latency_s, bytes_per_s))
        return tuple(found)
