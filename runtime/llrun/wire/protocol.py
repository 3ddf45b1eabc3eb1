"""The wire protocol: a fixed header before every frame, bounds checked before anything is allocated.

A frame is a 32-byte header and a payload: a tensor's raw bytes (little-endian, C order), or one control
message in msgpack. A frame of rows carries one row of a tensor for each of several sequences, computed in
one pass: between header and bytes stands a table that says of which sequence and position each row is.
Nothing that arrives is executed, unpickled, or allocated by a length that was not checked.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import msgspec

from llrun.errors import INTERNAL, RunError
from llrun.schema import MAX_BATCH

MAGIC, VERSION = b"LLRN", 2
CONTROL, TENSOR, ROWS = 1, 2, 3
CONTROL_LIMIT = 1 << 20
REASON_CHARS = 256
BUSY, LOADING = "R306", "R310"  # codes of refusals that pass: the head asks again
LAST_CHUNK, ALL_ROWS, ONE_ROW = 1, 2, 4
FLAGS = LAST_CHUNK | ALL_ROWS | ONE_ROW
HEADER = struct.Struct("<4sBBBBIIIIII")
HEADER_BYTES = HEADER.size
TABLE_ENTRY = struct.Struct("<IIII")
TABLE_ENTRY_BYTES = TABLE_ENTRY.size


class Header(NamedTuple):
    """`rows`: new tokens of the step (not of the payload, which has one row under ONE_ROW). `position`:
    of the first of them. `length`: payload bytes. `dtype`: a value of programs.DTYPE_CODES, 0 for control. A frame
    of rows has their number in `rows`, zeros for what its table says (flags, sequence, position), and a
    `length` that counts the table."""

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
    if header.kind not in (CONTROL, TENSOR, ROWS):
        raise ProtocolError(f"unknown frame kind {header.kind}")
    if header.flags & ~FLAGS:
        raise ProtocolError(f"unknown flags {header.flags:#x}")
    if header.kind == ROWS and (header.flags or header.sequence or header.position):
        raise ProtocolError("a frame of rows has flags, sequence and position in its table")
    if header.kind == CONTROL and header.length > CONTROL_LIMIT:
        raise ProtocolError(f"control message of {header.length} bytes, the limit is {CONTROL_LIMIT}")
    return header


# --- control messages ---

Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
Name = Annotated[
    str, msgspec.Meta(max_length=256, pattern=r"\A[ -~]+\Z")
]  # printable ASCII, at least a letter
Token = Annotated[str, msgspec.Meta(max_length=256, pattern=r"\A[ -~]*\Z")]
Text = Annotated[str, msgspec.Meta(max_length=4096)]  # for people; printable once it was decoded


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of the control messages."""


class Figures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a device has spent since the session began: seconds, bytes; of memory, its most."""

    compute_s: float = 0.0
    wait_s: float = 0.0
    sent_bytes: int = 0
    peak_memory_bytes: int = 0


class Hello(Message, frozen=True, tag="hello"):
    """First message on a connection. `role`: control (from the head, one a session) or data (`session`
    must be the one the head gave)."""

    bundle: Name
    sender: Name
    role: Name
    session: Token = ""


class Welcome(Message, frozen=True, tag="welcome"):
    device: Name


class Refused(Message, frozen=True, tag="refused"):
    code: Name
    reason: Text


class Configure(Message, frozen=True, tag="configure"):
    """The session's name, its epoch, and where each device listens."""

    session: Name
    epoch: Count
    addresses: dict[Name, Name]


class Configured(Message, frozen=True, tag="configured"):
    """The session's name is known: data connections may come. `every_chunk`: whether this device takes part
    in a prompt's every chunk, or only in the last. `sequences`: how many it has room for at once."""

    every_chunk: bool
    sequences: Count


class Connect(Message, frozen=True, tag="connect"):
    """Make the data connections that are this device's to make."""


class Ready(Message, frozen=True, tag="ready"):
    """All data connections are there."""


class Open(Message, frozen=True, tag="open"):
    """Make room for a sequence. Numbers rise and are never used twice in a session."""

    sequence: Count


class Opened(Message, frozen=True, tag="opened"):
    sequence: Count
    figures: Figures


class Rejected(Message, frozen=True, tag="rejected"):
    """There is no room for a sequence here; the session goes on without it."""

    sequence: Count
    code: Name
    reason: Text


class Close(Message, frozen=True, tag="close"):
    sequence: Count


class StepDone(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A step of which a device has done all its work, and what that cost the device.

    `compute_s`, `sent_bytes`: where steps were computed as one, an equal share of it, as each has one row
    there. `wait_s`: how long the device had been idle before it went to work on the step, shared likewise.
    """

    sequence: Count
    position: Count
    compute_s: float
    wait_s: float
    sent_bytes: int


class StepsDone(Message, frozen=True, tag="steps_done"):
    """Some steps are done on this device: one, or those of a pass."""

    steps: Annotated[tuple[StepDone, ...], msgspec.Meta(min_length=1, max_length=MAX_BATCH)]
    figures: Figures


class AskFigures(Message, frozen=True, tag="ask_figures"):
    pass


class Measured(Message, frozen=True, tag="measured"):
    figures: Figures


class Heartbeat(Message, frozen=True, tag="heartbeat"):
    pass


class Failed(Message, frozen=True, tag="failed"):
    """The session cannot go on. `lost`: the device that is gone, where that is the reason."""

    code: Name
    reason: Text
    lost: Token = ""


class Goodbye(Message, frozen=True, tag="goodbye"):
    pass


AnyMessage = (
    Hello | Welcome | Refused | Configure | Configured | Connect | Ready | Open | Opened | Rejected | Close
    | StepsDone | AskFigures | Measured | Heartbeat | Failed | Goodbye
)  # fmt: skip

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
    if isinstance(message, Refused | Rejected | Failed):
        return msgspec.structs.replace(message, reason=printable(message.reason))
    return message


def printable(text: str) -> str:
    """`text` with a question mark for each character that would steer a terminal, or turn what stands around it:
    control characters, escape sequences' first ones, line ends, direction marks."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
