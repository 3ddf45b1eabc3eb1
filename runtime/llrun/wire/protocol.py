"""The wire protocol: a fixed header before every frame, bounds checked before anything is allocated.

A frame is a 32-byte header and a payload: a tensor's raw bytes (little-endian, C order), or one control
message in msgpack. A frame of rows carries one row of a tensor for each of several sequences, computed in
one pass: between header and bytes stands a table that says of which sequence and position each row is.
A frame of cache rows carries what a block's caches hold of some positions, for a device that is to run it, or might
have to; each is acknowledged, so that only a few are on their way and tensors wait for no more than these.
Nothing that arrives is executed, unpickled, or allocated by a length that was not checked.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from llrun.errors import INTERNAL, RunError
from llrun.wire.messages import AnyMessage, Failed, LostPeer, Message, Refused, Rejected, Unprepared

MAGIC, VERSION = b"LLRN", 4
CONTROL, TENSOR, ROWS, CACHE, CACHE_ACK = 1, 2, 3, 4, 5
CONTROL_LIMIT = 1 << 20
REASON_CHARS = 256
BUSY, LOADING = "R306", "R310"  # codes of refusals that pass: the head asks again
LAST_CHUNK, ALL_ROWS, ONE_ROW, REPLAY, DRAFTS, AHEAD = 1, 2, 4, 8, 16, 32
FLAGS = LAST_CHUNK | ALL_ROWS | ONE_ROW | REPLAY | DRAFTS | AHEAD
HEADER = struct.Struct("<4sBBBBIIIIII")
HEADER_BYTES = HEADER.size
TABLE_ENTRY = struct.Struct("<IIII")
TABLE_ENTRY_BYTES = TABLE_ENTRY.size


class Header(NamedTuple):
    """`rows`: new tokens of the step (not of the payload, which has one row under ONE_ROW). `position`:
    of the first of them. `length`: payload bytes. `dtype`: a value of programs.DTYPE_CODES, 0 for control. A frame
    of rows has their number in `rows`, zeros for what its table says (flags, sequence, position), and a
    `length` that counts the table.

    Of cache rows: `tensor` is the block, `position` the first row, `epoch` the number of the transfer (0: a mirror),
    LAST_CHUNK says that it is the transfer's last frame. The payload has for each of the block's cache arrays in turn
    its rows: (rows, the other axes in their order). An acknowledgement has the transfer in `epoch`, and in `rows` how
    many frames of it were taken so far. REPLAY: the step's tokens were computed before; who is past it drops it.
    DRAFTS: of the step's tokens all but the first are guesses, whose cache rows count only when a step with AHEAD says
    so: it begins where the last of them that was right ends."""

    kind: int
    flags: int
    dtype: int
    epoch: int
    sequence: int
    position: int
    rows: int
    tensor: int
    length: int


class ProtocolError(RunError):
    """The other side sent what the protocol does not allow; the connection cannot be trusted any more."""

    def __init__(self, message: str) -> None:
        super().__init__("R401", message, INTERNAL)


def pack_header(header: Header) -> bytes:
    kind, flags, dtype, *numbers = header
    return HEADER.pack(MAGIC, VERSION, kind, flags, dtype, *numbers)


def pack_tensor(
    flags: int, dtype: int, epoch: int, sequence: int, position: int, rows: int, tensor: int, length: int
) -> bytes:
    """`pack_header` of a tensor's, at once."""
    return HEADER.pack(MAGIC, VERSION, TENSOR, flags, dtype, epoch, sequence, position, rows, tensor, length)


def pack_rows(headers: Sequence[Header]) -> bytes:
    """Header and table of a frame that carries the one row of each of `headers`, which agree in dtype,
    epoch, tensor and length."""
    first, count = headers[0], len(headers)
    length = count * (TABLE_ENTRY_BYTES + first.length)
    frame = Header(ROWS, 0, first.dtype, first.epoch, 0, 0, count, first.tensor, length)
    table = [
        TABLE_ENTRY.pack(header.sequence, header.position, header.rows, header.flags) for header in headers
    ]
    return pack_header(frame) + b"".join(table)


def unpack_rows(frame: Header, table: bytes | bytearray) -> tuple[Header, ...]:
    """What the header of each row would be, were it sent alone. `table`: frame.rows entries.

    Raises ProtocolError for unknown flags, more than a row of one sequence, and whatever is not a single row.
    """
    length = frame.length // frame.rows - TABLE_ENTRY_BYTES
    headers = []
    for sequence, position, rows, flags in TABLE_ENTRY.iter_unpack(table):
        if flags & ~FLAGS or not flags & ONE_ROW:
            raise ProtocolError(f"a row with flags {flags:#x}")
        headers.append(
            Header(
                TENSOR, flags, frame.dtype, frame.epoch, sequence, position, rows, frame.tensor, length
            )
        )  # fmt: skip
    if len({header.sequence for header in headers}) < len(headers):
        raise ProtocolError("two rows of one sequence in a frame")
    return tuple(headers)


def unpack_header(data: bytes | bytearray | memoryview) -> Header:
    """Parse 32 bytes. Raises ProtocolError for another magic, version, kind, flag or an oversized
    control message."""
    magic, version, *fields = HEADER.unpack(data)
    header = Header(*fields)
    if magic != MAGIC:
        raise ProtocolError(f"not a frame of this protocol: it begins with {magic!r}")
    if version != VERSION:
        raise ProtocolError(f"protocol version {version}, this side speaks {VERSION}: install the same llrun")
    if header.kind not in (CONTROL, TENSOR, ROWS, CACHE, CACHE_ACK):
        raise ProtocolError(f"unknown frame kind {header.kind}")
    if header.flags & ~FLAGS:
        raise ProtocolError(f"unknown flags {header.flags:#x}")
    if header.kind == ROWS and (header.flags or header.sequence or header.position):
        raise ProtocolError("a frame of rows has flags, sequence and position in its table")
    if header.kind == CONTROL and header.length > CONTROL_LIMIT:
        raise ProtocolError(f"control message of {header.length} bytes, the limit is {CONTROL_LIMIT}")
    return header


# --- control messages ---

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(AnyMessage)


def encode_control(message: Message) -> bytes:
    """A whole frame: header and payload."""
    payload = _ENCODER.encode(message)
    return pack_header(Header(CONTROL, 0, 0, 0, 0, 0, 0, 0, len(payload))) + payload


def decode_control(payload: bytes | bytearray) -> AnyMessage:
    """Parse a control payload; what it says to people is made printable. Raises ProtocolError."""
    try:
        message: AnyMessage = _DECODER.decode(payload)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ProtocolError(f"malformed control message: {printable(str(error))[:REASON_CHARS]}") from error
    if isinstance(message, Refused | Rejected | Failed | Unprepared | LostPeer):
        return msgspec.structs.replace(message, reason=printable(message.reason))
    return message


def printable(text: str) -> str:
    """`text` with a question mark for each character that would steer a terminal, or turn what stands around it:
    control characters, escape sequences' first ones, line ends, direction marks."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
