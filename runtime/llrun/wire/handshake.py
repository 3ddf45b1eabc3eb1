"""The first words on a connection, and control messages after them."""

from __future__ import annotations

from llrun.errors import INTERNAL, RunError
from llrun.wire.messages import AnyMessage, Hello, Message, Refused, Welcome
from llrun.wire.protocol import (
    CONTROL,
    CONTROL_LIMIT,
    HEADER_BYTES,
    Header,
    ProtocolError,
    decode_control,
    encode_control,
    unpack_header,
)
from llrun.wire.transport import Connection, ConnectionLost, Transport

HANDSHAKE_S = 5.0
HELLO_LIMIT = 4096
ANSWER_LIMIT = 1 << 15


class Refusal(RunError):
    """A device would not have this connection. `reason`: its own words."""

    def __init__(self, code: str, device: str, address: str, reason: str) -> None:
        super().__init__(code, f"device {device} at {address} refused: {reason}", INTERNAL)
        self.reason = reason


def send_message(connection: Connection, message: Message) -> None:
    connection.send(encode_control(message))


def read_header(connection: Connection) -> Header:
    data = bytearray(HEADER_BYTES)
    connection.read_into(memoryview(data))
    return unpack_header(data)


def read_message(connection: Connection, limit: int = CONTROL_LIMIT) -> AnyMessage:
    """The next frame, which must be a control message of at most `limit` bytes. Raises ConnectionLost,
    ProtocolError."""
    header = read_header(connection)
    if header.kind != CONTROL:
        raise ProtocolError("a tensor came where a control message was due")
    if header.length > limit:
        raise ProtocolError(f"a message of {header.length} bytes where at most {limit} are due")
    payload = bytearray(header.length)
    connection.read_into(memoryview(payload))
    return decode_control(payload)


def read_hello(connection: Connection) -> Hello:
    """The first message of whoever connects: nothing that is larger is taken from a stranger. Raises
    ConnectionLost, ProtocolError."""
    hello = read_message(connection, HELLO_LIMIT)
    if not isinstance(hello, Hello):
        raise ProtocolError(f"{type(hello).__name__} came where hello was due")
    return hello


def dial(
    transport: Transport,
    device: str,
    address: str,
    hello: Hello,
    timeout_s: float,
    answer_s: float | None = None,
) -> Connection:
    """A connection to `device`, handshake done. `timeout_s`: for the connection; `answer_s`: for the handshake,
    HANDSHAKE_S where it is None.

    Raises ConnectionLost; Refusal of its own code; RunError when another device, or another program, answers.
    """
    connection = transport.connect(address, timeout_s)
    try:
        connection.deadline(HANDSHAKE_S if answer_s is None else answer_s)
        send_message(connection, hello)
        _check_answer(read_message(connection, ANSWER_LIMIT), device, address)
    except ProtocolError as error:
        connection.close()
        raise ProtocolError(f"what listens at {address} is not device {device}: {error.message}") from error
    except (RunError, ConnectionLost):
        connection.close()
        raise
    connection.deadline(None)
    return connection


def _check_answer(answer: AnyMessage, device: str, address: str) -> None:
    if isinstance(answer, Refused):
        raise Refusal(answer.code, device, address, answer.reason)
    if not isinstance(answer, Welcome):
        raise ProtocolError(f"it answered hello with {type(answer).__name__}")
    if answer.device != device:
        raise RunError("R304", f"{address} is device {answer.device}, not {device}", INTERNAL)
