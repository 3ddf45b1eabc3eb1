"""The connections of one session: handshakes, readers of tensors, and the pulse that notices the dead."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from llrun.errors import INTERNAL, RunError, lost
from llrun.memory import Array, empty
from llrun.programs.program import Layout, Limits, Program
from llrun.schema import MAX_BATCH
from llrun.wire.protocol import (
    CONTROL,
    HEADER_BYTES,
    ONE_ROW,
    ROWS,
    TABLE_ENTRY_BYTES,
    TENSOR,
    AnyMessage,
    Header,
    Heartbeat,
    Hello,
    Message,
    ProtocolError,
    Refused,
    Welcome,
    decode_control,
    encode_control,
    unpack_header,
    unpack_rows,
)
from llrun.wire.transport import DEAD_AFTER_S, Connection, ConnectionLost, Transport

HANDSHAKE_S = 5.0
PULSE_S = 0.5
Report = Callable[[RunError], None]
Deliver = Callable[[tuple[Header, ...], Array], None]  # a checked tensor: of one step, or a row of several


def send_message(connection: Connection, message: Message) -> None:
    connection.send(encode_control(message))


def read_header(connection: Connection) -> Header:
    data = bytearray(HEADER_BYTES)
    connection.read_into(memoryview(data))
    return unpack_header(data)


def read_message(connection: Connection) -> AnyMessage:
    """The next frame, which must be a control message. Raises ConnectionLost, ProtocolError."""
    header = read_header(connection)
    if header.kind != CONTROL:
        raise ProtocolError("a tensor came where a control message was due")
    payload = bytearray(header.length)
    connection.read_into(memoryview(payload))
    return decode_control(payload)


def dial(transport: Transport, device: str, address: str, hello: Hello, timeout_s: float) -> Connection:
    """A connection to `device`, handshake done. Raises ConnectionLost, and RunError when it refuses, of
    its own code."""
    connection = transport.connect(address, timeout_s)
    try:
        connection.deadline(HANDSHAKE_S)
        send_message(connection, hello)
        answer = read_message(connection)
        if isinstance(answer, Refused):
            raise RunError(answer.code, f"device {device} at {address} refused: {answer.reason}", INTERNAL)
        if not isinstance(answer, Welcome):
            raise ProtocolError(f"{address} answered hello with {type(answer).__name__}")
        if answer.device != device:
            raise RunError("R304", f"{address} is device {answer.device}, not {device}", INTERNAL)
    except (RunError, ConnectionLost):
        connection.close()
        raise
    connection.deadline(None)
    return connection


class Links:
    """Data connections to the program's neighbours, by device. What arrives goes to `deliver`."""

    def __init__(self, program: Program, limits: Limits, deliver: Deliver, report: Report) -> None:
        self._program = program
        self._limits = limits
        self._deliver = deliver
        self._report = report
        self._connections: dict[str, Connection] = {}
        self._changed = threading.Condition()
        self._closed = False

    def attach(self, device: str, connection: Connection) -> None:
        """Take over a connection to `device`. Raises ProtocolError for one that is not due."""
        with self._changed:
            if self._closed or device not in self._program.neighbours or device in self._connections:
                raise ProtocolError(f"no data connection from device {device} is due")
            self._connections[device] = connection
            self._changed.notify_all()
        threading.Thread(
            target=self._read, args=(device, connection), name=f"read {device}", daemon=True
        ).start()

    def wait_complete(self, timeout_s: float) -> None:
        """Wait for all neighbours. Raises RunError R302 that names who is missing."""

        def complete() -> bool:
            return self._closed or self._connections.keys() == self._program.neighbours

        with self._changed:
            if not self._changed.wait_for(complete, timeout_s) or self._closed:
                missing = ", ".join(sorted(self._program.neighbours - self._connections.keys()))
                raise RunError(
                    "R302", f"no data connection with {missing} within {timeout_s:.0f} s", INTERNAL
                )

    def send(self, destination: str, header: bytes, payload: memoryview) -> None:
        try:
            self._connections[destination].send(header, payload)
        except ConnectionLost as error:
            raise lost(destination, str(error)) from error

    def retire(self) -> None:
        """From now on a neighbour that closes its connection is no failure."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def close(self) -> None:
        self.retire()
        for connection in list(self._connections.values()):
            connection.close()

    def _read(self, device: str, connection: Connection) -> None:
        try:
            while True:
                self._read_tensor(device, connection)
        except ConnectionLost as error:
            self._end(lost(device, str(error)))
        except ProtocolError as error:
            self._end(RunError(error.code, f"device {device}: {error.message}", INTERNAL))
        finally:
            connection.close()

    def _end(self, error: RunError) -> None:
        if not self._closed:
            self._report(error)

    def _read_tensor(self, device: str, connection: Connection) -> None:
        header = read_header(connection)
        layout = check_tensor(header, device, self._program, self._limits)
        if layout is None:
            drain(connection, header.length)
            return
        rows = 1 if header.flags & ONE_ROW else header.rows
        several = header.kind == ROWS
        headers = read_table(connection, header, layout, self._limits) if several else (header,)
        array = empty(layout.dims(rows), layout.dtype)
        connection.read_into(array.data.cast("B"))
        self._deliver(headers, array)


def check_tensor(header: Header, source: str, program: Program, limits: Limits) -> Layout | None:
    """The layout of what the header announces, None for one of another epoch, which is to be dropped.

    Every bound is checked here, before any memory is taken, but for what the table of a frame of rows says
    (read_table). Raises ProtocolError that names what is refused.
    """
    if header.kind not in (TENSOR, ROWS):
        raise ProtocolError("a control message came on a data connection")
    most = min(MAX_BATCH, limits.chunk)
    if header.kind == ROWS and not 1 <= header.rows <= most:
        raise ProtocolError(f"a frame of {header.rows} rows, a pass has 1 to {most}")
    table_bytes = header.rows * TABLE_ENTRY_BYTES if header.kind == ROWS else 0
    if header.length > limits.payload_bytes + table_bytes:
        raise ProtocolError(
            f"payload of {header.length} bytes, the limit is {limits.payload_bytes + table_bytes}"
        )
    if header.epoch != program.epoch:
        return None
    layout = program.layouts.get(header.tensor)
    if layout is None or program.sources.get(header.tensor) != source:
        raise ProtocolError(f"unexpected tensor {layout.name if layout else header.tensor}")
    if header.kind == ROWS:
        _check_size(header, layout, header.rows * (TABLE_ENTRY_BYTES + layout.row_bytes))
    else:
        _check_step(header, layout, limits)
    return layout


def read_table(connection: Connection, header: Header, layout: Layout, limits: Limits) -> tuple[Header, ...]:
    """What stands between the header of a checked frame of rows and its bytes: a header for each row.
    Raises ConnectionLost, ProtocolError."""
    table = bytearray(header.rows * TABLE_ENTRY_BYTES)
    connection.read_into(memoryview(table))
    headers = unpack_rows(header, table)
    for one in headers:
        _check_step(one, layout, limits)
    return headers


def _check_step(header: Header, layout: Layout, limits: Limits) -> None:
    if not 1 <= header.rows <= limits.chunk:
        raise ProtocolError(f"tensor {layout.name} of {header.rows} rows, a chunk has 1 to {limits.chunk}")
    if header.position + header.rows > limits.context:
        raise ProtocolError(
            f"tensor {layout.name} ends at position {header.position + header.rows},"
            f" the context is {limits.context}"
        )
    _check_size(header, layout, layout.row_bytes * (1 if header.flags & ONE_ROW else header.rows))


def _check_size(header: Header, layout: Layout, expected: int) -> None:
    if (header.dtype, header.length) != (layout.code, expected):
        raise ProtocolError(
            f"tensor {layout.name}: {header.length} bytes of dtype {header.dtype},"
            f" expected {expected} of {layout.code}"
        )


def drain(connection: Connection, length: int) -> None:
    scratch = memoryview(bytearray(min(length, 1 << 16)))
    while length:
        piece = scratch[: min(length, len(scratch))]
        connection.read_into(piece)
        length -= len(piece)


class Pulse:
    """Sends heartbeats on control connections and reports a device that has been silent for too long."""

    def __init__(self, connections: Mapping[str, Connection], report: Report) -> None:
        self._connections = dict(connections)
        self._report = report
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        checked = time.monotonic()
        while not self._stop.wait(PULSE_S):
            now = time.monotonic()
            if now - checked < 4 * PULSE_S:  # else this process itself was suspended: nobody else's fault
                for device, connection in self._connections.items():
                    self._check(device, connection, now)
            checked = now

    def _check(self, device: str, connection: Connection, now: float) -> None:
        silent_s = now - connection.heard_at
        if silent_s > DEAD_AFTER_S:
            self._report(lost(device, f"nothing heard of it for {silent_s:.1f} s"))
            self._stop.set()
            return
        try:
            send_message(connection, Heartbeat())
        except ConnectionLost as error:
            self._report(lost(device, str(error)))
            self._stop.set()
