"""What anyone may send to a worker's port: nothing of it kills the worker, or a request that runs."""

from __future__ import annotations

import random
import socket
import threading
import time
from contextlib import suppress

import numpy_model
import pytest

from llrun.errors import RunError
from llrun.programs.layouts import Limits
from llrun.requests.conversation import generate
from llrun.requests.sampling import Sampling
from llrun.requests.scheduler import Scheduler
from llrun.wire import handshake
from llrun.wire.frames import check_tensor, read_table
from llrun.wire.handshake import dial, read_message
from llrun.wire.messages import Failed, Hello, Refused
from llrun.wire.protocol import (
    CONTROL,
    HEADER_BYTES,
    LAST_CHUNK,
    ONE_ROW,
    ROWS,
    TABLE_ENTRY_BYTES,
    TENSOR,
    Header,
    ProtocolError,
    encode_control,
    pack_header,
    pack_rows,
)
from llrun.wire.transport import ConnectionLost, Tcp
from llrun.worker import door

NAMES = ["head", "anna", "bert"]


def raw(address: str) -> socket.socket:
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=5)


def hello(role: str, **changes: str) -> Hello:
    return Hello(**{"bundle": numpy_model.BUNDLE, "sender": "head", "role": role, **changes})


def garbage() -> list[bytes]:
    draw = random.Random(11)
    control = Header(CONTROL, 0, 0, 0, 0, 0, 0, 0, 0)
    return [
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + draw.randbytes(200),
        draw.randbytes(4096),
        pack_header(control._replace(length=0xFFFFFFFF)),
        pack_header(control._replace(length=1 << 20)),
        pack_header(control._replace(kind=TENSOR, length=0xFFFFFFFF)),
        pack_header(control._replace(kind=ROWS, rows=0xFFFFFFFF, length=0xFFFFFFFF)),
        pack_header(control._replace(length=40)) + draw.randbytes(40),
        encode_control(hello("control"))[:-3],
        encode_control(hello("data", session="guess")),
        encode_control(hello("data", sender="bert", session="0" * 32)),
        encode_control(hello("admin")),
        encode_control(hello("control", sender="mallory")),
        encode_control(hello("control", bundle="another")),
    ]


def scan(addresses: list[str], stop: threading.Event, counts: list[int]) -> None:
    while not stop.is_set():
        for data in garbage():
            for address in addresses:
                with raw(address) as sock:
                    sock.sendall(data)
                counts[0] += 1


def test_a_running_request_survives_scanners(cluster):
    workers = cluster(NAMES)
    stop, counts = threading.Event(), [0]
    scanner = threading.Thread(target=scan, args=(list(workers.addresses.values()), stop, counts))
    with workers.session() as session:
        scanner.start()
        result = generate(
            Scheduler(session), [4, 5, 6], 60, Sampling(), lambda token: time.sleep(0.005) or True
        )
        stop.set()
        scanner.join()
    assert counts[0] > 50
    assert list(result.tokens) == numpy_model.greedy([4, 5, 6], 60)
    with workers.session() as session:
        assert len(generate(Scheduler(session), [1], 3, Sampling(), lambda token: True).tokens) == 3


@pytest.mark.parametrize(
    ("changes", "role", "reason"),
    [
        ({"bundle": "c" * 64}, "control", "it does not run bundle cccccccccccc"),
        ({"sender": "mallory"}, "control", "no control connection from mallory"),
        ({"session": "guess"}, "data", "no data connection from head is due"),
        ({}, "admin", "no admin connection"),
    ],
)
def test_refused_by_name(cluster, changes, role, reason):
    address = cluster(NAMES).addresses["anna"]
    with pytest.raises(RunError, match=reason):
        dial(Tcp(), "anna", address, hello(role, **changes), 5.0)


def test_another_head_waits_and_is_told_why(cluster):
    workers, notes = cluster(NAMES), []
    with workers.session() as session:
        with pytest.raises(RunError, match="serving another head"), workers.session(0.3, notes.append):
            pass
        assert notes == [
            f"waiting for device anna at {workers.addresses['anna']}: it is serving another head"
        ]
        assert len(generate(Scheduler(session), [1], 3, Sampling(), lambda token: True).tokens) == 3


def test_the_wrong_device_at_an_address_is_named(cluster):
    workers = cluster(NAMES)
    workers.addresses = {"anna": workers.addresses["bert"], "bert": workers.addresses["anna"]}
    with pytest.raises(RunError, match="is device bert, not anna"), workers.session():
        pass


def test_silent_connections_are_ended_and_bounded(cluster, monkeypatch):
    monkeypatch.setattr(handshake, "HANDSHAKE_S", 0.5)
    monkeypatch.setattr(door, "HANDSHAKE_S", 0.5)
    address = cluster(NAMES).addresses["anna"]
    silent = [raw(address) for _ in range(door.MAX_HANDSHAKES + 5)]
    for sock in silent:
        assert _ended(sock)
    assert dial(Tcp(), "anna", address, hello("control"), 5.0)


def test_dripping_bytes_do_not_extend_a_handshake(cluster, monkeypatch):
    monkeypatch.setattr(door, "HANDSHAKE_S", 0.5)
    sock = raw(cluster(NAMES).addresses["anna"])
    start = time.monotonic()
    frame = encode_control(hello("control"))
    with suppress(ConnectionError):
        for byte in frame:
            sock.sendall(bytes([byte]))
            time.sleep(0.1)
    assert time.monotonic() - start < 0.08 * len(frame)


def test_an_unexpected_message_of_the_head_ends_its_session_only(cluster):
    workers = cluster(NAMES)
    control = dial(Tcp(), "anna", workers.addresses["anna"], hello("control"), 5.0)
    control.send(encode_control(Refused("R1", "no")))
    with suppress(ConnectionLost):
        while not isinstance(read_message(control), Failed):
            pass
    with workers.session() as session:
        assert len(generate(Scheduler(session), [1], 3, Sampling(), lambda token: True).tokens) == 3


def _ended(sock: socket.socket) -> bool:
    """Whether the other side closes it, after at most a refusal."""
    with sock:
        try:
            while sock.recv(4096):
                pass
        except ConnectionError:
            pass
        return True


# --- tensors ---

GOOD = Header(TENSOR, 0, 1, 1, 0, 16, 8, numpy_model.FIRST, 8 * 64)
LIMITS = Limits(chunk=8, context=256, payload_bytes=8 * 64)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": CONTROL}, "control message came on a data connection"),
        ({"length": 8 * 64 + 1}, "payload of 513 bytes, the limit is 512"),
        ({"length": 0xFFFFFFFF}, "the limit is 512"),
        ({"tensor": 77}, "unexpected tensor 77"),
        ({"tensor": numpy_model.FIRST + 1}, "unexpected tensor h1"),
        ({"rows": 0}, "of 0 rows"),
        ({"rows": 9}, "of 9 rows, a chunk has 1 to 8"),
        ({"position": 249}, "ends at position 257, the context is 256"),
        ({"position": 0xFFFFFFFF}, "the context is 256"),
        ({"dtype": 2}, "dtype 2, expected 512 of 1"),
        ({"length": 64}, "64 bytes"),
        ({"flags": ONE_ROW}, "512 bytes of dtype 1, expected 64"),
    ],
)
def test_a_tensor_that_is_not_due_is_refused_before_memory_is_taken(changes, reason):
    program = numpy_model.device("anna", NAMES).installed
    assert check_tensor(GOOD, "head", program, LIMITS)
    with pytest.raises(ProtocolError, match=reason):
        check_tensor(GOOD._replace(**changes), "head", program, LIMITS)


def test_a_tensor_of_another_device_is_refused():
    program = numpy_model.device("anna", NAMES).installed
    with pytest.raises(ProtocolError, match="unexpected tensor h0"):
        check_tensor(GOOD, "bert", program, LIMITS)


def test_an_old_epoch_is_dropped():
    assert (
        check_tensor(GOOD._replace(epoch=0), "head", numpy_model.device("anna", NAMES).installed, LIMITS)
        is None
    )


# --- rows of several sequences ---

ROW = GOOD._replace(flags=LAST_CHUNK | ONE_ROW, rows=1, length=64)
FRAME = Header(ROWS, 0, 1, 1, 0, 0, 2, numpy_model.FIRST, 2 * (TABLE_ENTRY_BYTES + 64))


class Canned:
    """A connection that gives these bytes."""

    def __init__(self, data: bytes) -> None:
        self.left = data

    def read_into(self, view: memoryview) -> None:
        view[:], self.left = self.left[: len(view)], self.left[len(view) :]


def table_of(*rows: Header) -> Canned:
    return Canned(pack_rows(rows)[HEADER_BYTES:])


def test_a_frame_of_rows_is_what_its_table_says():
    program = numpy_model.device("anna", NAMES).installed
    rows = (ROW, ROW._replace(sequence=7, position=20, rows=5))
    layout = check_tensor(FRAME, "head", program, LIMITS)
    assert layout
    assert read_table(table_of(*rows), FRAME, layout, LIMITS) == rows
    assert check_tensor(FRAME._replace(epoch=0), "head", program, LIMITS) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rows": 0, "length": 0}, "a frame of 0 rows, a pass has 1 to 8"),
        ({"rows": 9}, "a frame of 9 rows"),
        ({"rows": 0xFFFFFFFF, "length": 0xFFFFFFFF}, "a frame of 4294967295 rows"),
        ({"length": 0xFFFFFFFF}, "payload of 4294967295 bytes"),
        ({"length": 2 * 64}, "128 bytes of dtype 1, expected 160"),
        ({"rows": 3}, "expected 240"),
        ({"dtype": 2}, "dtype 2"),
        ({"tensor": 77}, "unexpected tensor 77"),
    ],
)
def test_a_frame_of_rows_that_is_not_due_is_refused_before_memory_is_taken(changes, reason):
    program = numpy_model.device("anna", NAMES).installed
    with pytest.raises(ProtocolError, match=reason):
        check_tensor(FRAME._replace(**changes), "head", program, LIMITS)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sequence": 0}, "two rows of one sequence"),
        ({"position": 256}, "ends at position 257"),
        ({"rows": 0}, "of 0 rows"),
        ({"rows": 9}, "of 9 rows"),
        ({"flags": LAST_CHUNK}, "a row with flags 0x1"),
        ({"flags": 0xFF}, "a row with flags 0xff"),
    ],
)
def test_a_row_that_is_not_due_is_refused_before_memory_is_taken(changes, reason):
    layout = numpy_model.device("anna", NAMES).installed.layouts[numpy_model.FIRST]
    other = ROW._replace(**{"sequence": 1, **changes})
    with pytest.raises(ProtocolError, match=reason):
        read_table(table_of(ROW, other), FRAME, layout, LIMITS)
