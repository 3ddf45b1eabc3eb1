"""Reads tensors of single tokens as they come, without waiting for the rest of one."""

from __future__ import annotations

from collections.abc import Callable

from llrun.memory import ALIGNMENT, Array, empty
from llrun.programs.layouts import Layout
from llrun.wire.coding import received, receiving
from llrun.wire.protocol import (
    DRAFTS,
    HEADER_BYTES,
    ONE_ROW,
    ROWS,
    TABLE_ENTRY_BYTES,
    TENSOR,
    Header,
    unpack_header,
)
from llrun.wire.transport import Connection

ROOMS = 8
Admit = Callable[[Header], Layout | None]
Table = Callable[[Header, bytes | bytearray, Layout], tuple[Header, ...]]


def is_token(header: Header) -> bool:
    """Whether a frame is a row of a tensor, one with guesses behind it, or a row of each of several sequences."""
    return header.kind == ROWS or (
        header.kind == TENSOR and (header.rows == 1 or bool(header.flags & (ONE_ROW | DRAFTS)))
    )


class TokenReader:
    """What has come of a connection's newest frame. `admit` gives the layout of what a header announces, None for what
    is to be dropped, and `table` the headers of a frame of rows; both raise ProtocolError for what cannot be."""

    def __init__(self, connection: Connection, admit: Admit, table: Table) -> None:
        self._connection = connection
        self._admit = admit
        self._told = table
        self._rows: dict[tuple[int, ...], list[Array]] = {}
        self._begin()

    def _begin(self) -> None:
        self._head = bytearray(HEADER_BYTES)
        self._left = memoryview(self._head)
        self._header: Header | None = None
        self._layout: Layout | None = None
        self._table = bytearray()
        self._array: Array | None = None

    def take(self) -> Header | tuple[tuple[Header, ...], Array] | None:
        """A tensor, if it is whole by now, and a header for each of its rows; the header alone of what is no token's
        tensor, or to be dropped: the rest of that frame is another's to read. Raises ConnectionLost, ProtocolError."""
        while self._fill():
            if self._header is None:
                self._header = header = unpack_header(self._head)
                self._layout = self._admit(header) if is_token(header) else None
                if self._layout is None:
                    self._begin()
                    return header
                if header.kind == ROWS:
                    self._table = bytearray(header.rows * TABLE_ENTRY_BYTES)
                    self._left = memoryview(self._table)
            if self._left or self._layout is None:
                continue
            if self._array is None:
                rows = 1 if self._header.flags & ONE_ROW else self._header.rows
                self._array = self._room(self._layout, rows)
                self._left = self._array.data.cast("B")
                continue
            header, layout, array = self._header, self._layout, self._array
            headers = self._told(header, self._table, layout) if header.kind == ROWS else (header,)
            self._begin()
            return headers, received(layout, array)
        return None

    def _room(self, layout: Layout, rows: int) -> Array:
        """An array for what comes of the tensor. Those of single rows are made several at once, as making one takes
        longer than reading it."""
        if rows > 1 or layout.coded or layout.row_bytes % ALIGNMENT:
            return receiving(layout, rows)
        made = self._rows.get(layout.shape)
        if not made:
            made = self._rows[layout.shape] = [*empty((ROOMS, *layout.dims(1)), layout.dtype)]
        return made.pop()

    def _fill(self) -> bool:
        """Whether what is read now is whole."""
        while self._left:
            count = self._connection.read_now(self._left)
            if not count:
                return False
            self._left = self._left[count:]
        return True
