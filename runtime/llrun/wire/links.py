"""The data connections of a session: tensors out, and in by a reader for each."""

from __future__ import annotations

import threading
from collections.abc import Callable

from llrun.errors import INTERNAL, RunError, lost
from llrun.memory import Array, empty
from llrun.programs.installed import Installed
from llrun.programs.layouts import Limits
from llrun.wire.frames import check_tensor, drain, read_table
from llrun.wire.handshake import read_header
from llrun.wire.protocol import ONE_ROW, ROWS, Header, ProtocolError
from llrun.wire.pulse import Report
from llrun.wire.transport import Connection, ConnectionLost

# A checked tensor and the device it is from: of one step, or a row of several.
Deliver = Callable[[str, tuple[Header, ...], Array], None]


class Links:
    """Data connections to the program's neighbours, by device. What arrives goes to `deliver`."""

    def __init__(self, installed: Installed, limits: Limits, deliver: Deliver, report: Report) -> None:
        self._installed = installed
        self._limits = limits
        self._deliver = deliver
        self._report = report
        self._connections: dict[str, Connection] = {}
        self._changed = threading.Condition()
        self._closed = False

    def attach(self, device: str, connection: Connection) -> None:
        """Take over a connection to `device`. Raises ProtocolError for one that is not due."""
        with self._changed:
            if self._closed or device not in self._installed.neighbours or device in self._connections:
                raise ProtocolError(f"no data connection from device {device} is due")
            self._connections[device] = connection
            self._changed.notify_all()
        threading.Thread(
            target=self._read, args=(device, connection), name=f"read {device}", daemon=True
        ).start()

    def install(self, installed: Installed) -> None:
        """Admit another program's tensors from now on. Raises RunError R302 for a neighbour without a connection."""
        missing = sorted(installed.neighbours - self._connections.keys())
        if missing:
            raise RunError(
                "R302",
                f"no data connection with {', '.join(missing)}, which the next program needs",
                INTERNAL,
            )
        self._installed = installed

    def wait_complete(self, timeout_s: float) -> None:
        """Wait for all neighbours. Raises RunError R302 that names who is missing."""

        def complete() -> bool:
            return self._closed or self._connections.keys() >= self._installed.neighbours

        with self._changed:
            if not self._changed.wait_for(complete, timeout_s) or self._closed:
                missing = ", ".join(sorted(self._installed.neighbours - self._connections.keys()))
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
        layout = check_tensor(header, device, self._installed, self._limits)
        if layout is None:
            drain(connection, header.length)
            return
        rows = 1 if header.flags & ONE_ROW else header.rows
        several = header.kind == ROWS
        headers = read_table(connection, header, layout, self._limits) if several else (header,)
        array = empty(layout.dims(rows), layout.dtype)
        connection.read_into(array.data.cast("B"))
        self._deliver(device, headers, array)
