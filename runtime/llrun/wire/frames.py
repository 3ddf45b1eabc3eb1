"""Which frames of tensors are admitted: a pure function of their header, the program and its limits."""

from __future__ import annotations

from llrun.programs.installed import Installed
from llrun.programs.layouts import Layout, Limits
from llrun.schema import MAX_BATCH
from llrun.wire.protocol import (
    ALL_ROWS,
    DRAFTS,
    LAST_CHUNK,
    ONE_ROW,
    REPLAY,
    ROWS,
    TABLE_ENTRY_BYTES,
    TENSOR,
    Header,
    ProtocolError,
    unpack_rows,
)
from llrun.wire.transport import Connection


def check_tensor(header: Header, source: str, installed: Installed, limits: Limits) -> Layout | None:
    """The layout of what the header announces, None for one of an old epoch, which is to be dropped. One of the next
    epoch is admitted whoever sends it: what it may come from is known when its program is installed.

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
    if header.epoch < installed.epoch:
        return None
    if header.epoch > installed.epoch + 1:
        raise ProtocolError(f"a tensor of epoch {header.epoch}, while epoch {installed.epoch} runs here")
    layout = installed.layouts.get(header.tensor)
    early = header.epoch > installed.epoch
    if layout is None or (not early and installed.sources.get(header.tensor) != source):
        raise ProtocolError(f"unexpected tensor {layout.name if layout else header.tensor}")
    if header.kind == ROWS:
        _check_size(header, layout, header.rows * (TABLE_ENTRY_BYTES + layout.wire_bytes))
    else:
        _check_step(header, layout, limits)
    return layout


def read_table(connection: Connection, header: Header, layout: Layout, limits: Limits) -> tuple[Header, ...]:
    """What stands between the header of a checked frame of rows and its bytes: a header for each row.
    Raises ConnectionLost, ProtocolError."""
    table = bytearray(header.rows * TABLE_ENTRY_BYTES)
    connection.read_into(memoryview(table))
    return table_headers(header, table, layout, limits)


def table_headers(
    header: Header, table: bytes | bytearray, layout: Layout, limits: Limits
) -> tuple[Header, ...]:
    """What a frame of rows says of each, checked. Raises ProtocolError."""
    headers = unpack_rows(header, table)
    for row in headers:
        _check_step(row, layout, limits)
    return headers


def _check_step(header: Header, layout: Layout, limits: Limits) -> None:
    if not 1 <= header.rows <= limits.chunk:
        raise ProtocolError(f"tensor {layout.name} of {header.rows} rows, a chunk has 1 to {limits.chunk}")
    if header.position + header.rows > limits.context:
        raise ProtocolError(
            f"tensor {layout.name} ends at position {header.position + header.rows},"
            f" the context is {limits.context}"
        )
    if header.flags & REPLAY and header.flags & (LAST_CHUNK | ALL_ROWS):
        raise ProtocolError(f"tensor {layout.name} is of a last chunk that is computed again")
    if header.flags & DRAFTS and not (header.flags & ALL_ROWS and header.rows > 1):
        raise ProtocolError(f"tensor {layout.name} of {header.rows} rows, flags {header.flags:#x}: no drafts")
    _check_size(header, layout, layout.wire_bytes * (1 if header.flags & ONE_ROW else header.rows))


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
