"""The first words on a connection, and control messages after them."""

from __future__ import annotations

from llrun.errors import INTERNAL, RunError
from llrun.wire.protocol import (
    CONTROL,
    HEADER_BYTES,
    AnyMessage,
    Header,
    Hello,
    Message,
    ProtocolError,
    Refused,
    Welcome,
    decode_control,
    encode_control,
    unpack_header,
)
from llrun.wire.transport import Connection, ConnectionLost, Transport

HANDSHAKE_S = 5.0


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


def read_message(connection: Connection) -> AnyMessage:
    """The next frame, which must be a control message. Raises ConnectionLost, ProtocolError."""
    header = read_header(connection)
    if header.kind != CONTROL:
        raise ProtocolError("a tensor came where a control message was due")
    payload = bytearray(header.length)
    connection.read_into(memoryview(payload))
    return decode_control(payload)


def dial(transport: Transport, device: str, address: str, hello: Hello, timeout_s: float) -> Connection:
    """A connection to `device`, handshake done. Raises ConnectionLost; Refusal of its own code; RunError
    when another device, or another program, answers."""
    connection = transport.connect(address, timeout_s)
    try:
        connection.deadline(HANDSHAKE_S)
        send_message(connection, hello)
        answer = read_message(connection)
        if isinstance(answer, Refused):
            raise Refusal(answer.code, device, address, answer.reason)
        if not isinstance(answer, Welcome):
            raise ProtocolError(f"{address} answered hello with {type(answer).__name__}")
        if answer.device != device:
            raise RunError("R304", f"{address} is device {answer.device}, not {device}", INTERNAL)
    except (RunError, ConnectionLost):
        connection.close()
        raise
    connection.deadline(None)
    return connection
