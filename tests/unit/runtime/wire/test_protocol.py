"""Frames: what is written is read back, and nothing malformed passes."""

from __future__ import annotations

import random
from typing import get_args

import msgspec
import pytest

from llrun.schema import MAX_BATCH
from llrun.wire.messages import (
    AnyMessage,
    Configure,
    Failed,
    Figures,
    Hello,
    LostPeer,
    Opened,
    Refused,
    Rejected,
    StepDone,
    StepsDone,
    Unprepared,
)
from llrun.wire.protocol import (
    ALL_ROWS,
    CONTROL,
    CONTROL_LIMIT,
    HEADER_BYTES,
    LAST_CHUNK,
    ONE_ROW,
    ROWS,
    TABLE_ENTRY_BYTES,
    TENSOR,
    Header,
    ProtocolError,
    decode_control,
    encode_control,
    pack_header,
    pack_rows,
    unpack_header,
    unpack_rows,
)

GOOD = Header(TENSOR, ALL_ROWS, 1, 7, 3, 100, 8, 12, 512)


def test_header_round_trip():
    assert unpack_header(pack_header(GOOD)) == GOOD
    assert len(pack_header(GOOD)) == HEADER_BYTES == 32


def test_a_frame_of_rows_is_a_header_for_each():
    row = GOOD._replace(flags=LAST_CHUNK | ONE_ROW, rows=1)
    rows = tuple(row._replace(sequence=i, position=7 * i, rows=1 + i % 3) for i in range(MAX_BATCH))
    data = pack_rows(rows)
    frame = unpack_header(data[:HEADER_BYTES])
    assert (frame.kind, frame.rows, frame.tensor) == (ROWS, MAX_BATCH, row.tensor)
    assert frame.length == MAX_BATCH * (TABLE_ENTRY_BYTES + row.length)
    assert unpack_rows(frame, data[HEADER_BYTES:]) == rows


@pytest.mark.parametrize("changes", [{"flags": ONE_ROW}, {"sequence": 1}, {"position": 1}])
def test_what_a_table_says_is_not_said_twice(changes):
    frame = Header(ROWS, 0, 1, 7, 0, 0, 2, 12, 64)
    assert unpack_header(pack_header(frame)) == frame
    with pytest.raises(ProtocolError, match="in its table"):
        unpack_header(pack_header(frame._replace(**changes)))


@pytest.mark.parametrize(
    ("offset", "byte", "reason"),
    [(0, 0, "not a frame"), (4, 9, "version 9"), (5, 7, "kind 7"), (6, 0x80, "flags 0x80")],
)
def test_wrong_header_is_refused_by_name(offset, byte, reason):
    data = bytearray(pack_header(GOOD))
    data[offset] = byte
    with pytest.raises(ProtocolError, match=reason):
        unpack_header(data)


def test_oversized_control_message_is_refused_before_it_is_read():
    huge = pack_header(GOOD._replace(kind=CONTROL, flags=0, length=CONTROL_LIMIT + 1))
    with pytest.raises(ProtocolError, match="limit is 1048576"):
        unpack_header(huge)


@pytest.mark.parametrize(
    "message",
    [
        Hello("b", "head", "control"),
        Configure("s", 1, {"pi": "10.0.0.1:5700"}),
        Opened(3, Figures(1.5, 0.25, 1 << 40, 1 << 30)),
        StepsDone((StepDone(3, 100, 0.5, 0.25, 96), StepDone(4, 7, 0.5, 0.25, 95)), Figures(1.5)),
    ],
)
def test_control_round_trip(message):
    frame = encode_control(message)
    header = unpack_header(frame[:HEADER_BYTES])
    assert header.length == len(frame) - HEADER_BYTES
    assert decode_control(frame[HEADER_BYTES:]) == message


@pytest.mark.parametrize(
    "value",
    [
        {"type": "hello"},
        {"type": "open", "sequence": -1},
        {"type": "open", "sequence": 1 << 40},
        {"type": "open", "sequence": "1"},
        {"type": "open", "sequence": 1, "more": 2},
        {"type": "exec", "code": "1"},
        {"type": "steps_done", "steps": [], "figures": {}},
        {"type": "steps_done", "steps": [[0, 1, 0.5, 0.5, 1]] * 17, "figures": {}},
        {"type": "steps_done", "steps": [[0, 1, 2]], "figures": {}},
        {"type": "hello", "bundle": "", "sender": "a", "role": "data"},
        {"type": "hello", "bundle": "b" * 257, "sender": "a", "role": "data"},
        {"type": "hello", "bundle": "b", "sender": "a\x1b[2J", "role": "data"},
        {"type": "hello", "bundle": "b", "sender": "a\n", "role": "data"},
        {"type": "hello", "bundle": "b", "sender": "a", "role": "data", "session": "\x9b"},
        {"type": "hello", "bundle": "b", "sender": "a", "role": "da\u202eta"},
        {"type": "configure", "session": "s", "epoch": 1, "addresses": {"a\x07": "b:1"}},
        {"type": "failed", "code": "R1", "reason": "", "lost": "a\r"},
        {"type": "refused", "code": "R1", "reason": "r" * 4097},
        {"type": "hello\x1b]0;title\x07"},
        {"type": "hello", "\x1b[31m": 1},
        ["open", 1],
        None,
    ],
)
def test_control_of_another_shape_is_refused(value):
    with pytest.raises(ProtocolError, match="malformed") as caught:
        decode_control(msgspec.msgpack.encode(value))
    assert caught.value.message.isprintable()


def test_what_is_said_to_people_is_printable():
    said = "no\x1b[2J\x07 room\nfor\u202e\x9b it: übrig é"
    plain = "no?[2J? room?for?? it: übrig é"
    spoken = [
        Refused("R1", said),
        Rejected(1, "R1", said),
        Failed("R1", said),
        Unprepared(1, 1, "R1", said),
        LostPeer("pi", said),
    ]
    texts = {kind for kind in get_args(AnyMessage) if "reason" in kind.__struct_fields__}
    assert {type(message) for message in spoken} == texts
    for message in spoken:
        decoded = decode_control(encode_control(message)[HEADER_BYTES:])
        assert decoded == msgspec.structs.replace(message, reason=plain)


def test_random_bytes_never_pass_and_never_raise_anything_else():
    draw = random.Random(5)
    for _ in range(3000):
        data = draw.randbytes(draw.randrange(64))
        with pytest.raises(ProtocolError):
            decode_control(data)
        with pytest.raises(ProtocolError):
            unpack_header(data.ljust(HEADER_BYTES, b"\0")[:HEADER_BYTES])


def test_deep_nesting_is_refused():
    with pytest.raises(ProtocolError):
        decode_control(b"\x91" * 100_000)
