"""What goes over the wire: no token ids, no logits, nothing of the vocabulary's size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import numpy_model as synthetic
import pytest

from llrun.requests.conversation import generate
from llrun.requests.sampling import Sampling
from llrun.wire.protocol import (
    CACHE,
    CONTROL,
    HEADER_BYTES,
    ROWS,
    TABLE_ENTRY_BYTES,
    TENSOR,
    decode_control,
    unpack_header,
)
from llrun.wire.transport import TcpConnection

NAMES = ["head", "anna", "bert"]
PROMPT = [
    61,
    7,
    88,
    23,
    5,
    94,
    42,
    17,
    76,
    3,
    59,
]  # longer than a chunk; ids that no position or count looks like
ANSWER = 9
IDS_AS = [np.int64, np.int32, np.uint32, np.uint8, np.float32]


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every frame that any device of this process sends, whole."""
    sent: list[bytes] = []
    send = TcpConnection.send

    def watched(connection: TcpConnection, *parts: Any) -> None:
        sent.append(b"".join(bytes(part) for part in parts))
        send(connection, *parts)

    monkeypatch.setattr(TcpConnection, "send", watched)
    return sent


def leaks(frame: bytes, ids: list[int]) -> Iterator[str]:
    """What of the text a frame tells to who reads it, in words."""
    header, payload = unpack_header(frame[:HEADER_BYTES]), frame[HEADER_BYTES:]
    if header.kind in (TENSOR, ROWS):
        if header.tensor in (synthetic.IDS, synthetic.LOGITS):
            yield f"tensor {header.tensor}"
        table = TABLE_ENTRY_BYTES * header.rows if header.kind == ROWS else 0
        rows = header.rows if header.kind == ROWS or len(payload) > synthetic.WIDTH * 4 else 1
        if (len(payload) - table) // rows != synthetic.WIDTH * 4:
            yield f"a row of {(len(payload) - table) // rows} bytes"
    for kind in IDS_AS:
        if any(np.array(ids[i : i + 3], kind).tobytes() in payload for i in range(len(ids) - 2)):
            yield f"ids as {np.dtype(kind).name}"
    if header.kind == CONTROL and _lists(msgspec.to_builtins(decode_control(payload)), ids):
        yield "ids in a control message"


def _lists(value: Any, ids: list[int]) -> bool:
    """Whether a list of numbers anywhere in `value` has three ids in a row."""
    if isinstance(value, dict):
        return any(_lists(each, ids) for each in value.values())
    if not isinstance(value, list | tuple):
        return False
    runs = [ids[i : i + 3] for i in range(len(ids) - 2)]
    return any(list(value[i : i + 3]) in runs for i in range(len(value))) or any(
        _lists(v, ids) for v in value
    )


def test_neither_ids_nor_logits_leave_the_head(cluster: Any, frames: list[bytes]) -> None:
    with cluster(NAMES).scheduler() as scheduler:
        result = generate(scheduler, PROMPT, ANSWER, Sampling(), lambda token: True)
    answer = list(result.tokens)
    assert answer == synthetic.greedy(PROMPT, ANSWER)
    kinds = [unpack_header(frame[:HEADER_BYTES]).kind for frame in frames]
    assert kinds.count(TENSOR) >= 3 * ANSWER
    assert {CONTROL, TENSOR} <= set(kinds) <= {CONTROL, TENSOR, ROWS, CACHE}
    found = [leak for frame in frames for ids in (PROMPT, answer) for leak in leaks(frame, ids)]
    assert found == []


def test_the_watch_sees_ids_and_logits_where_there_are_any() -> None:
    """Frames as they would be if a program sent them."""
    from llrun.programs.layouts import DTYPE_CODES
    from llrun.wire.messages import Configure
    from llrun.wire.protocol import Header, encode_control, pack_header

    def tensor(number: int, dtype: str, values: np.ndarray) -> bytes:
        raw = values.tobytes()
        return (
            pack_header(Header(TENSOR, 0, DTYPE_CODES[dtype], 0, 0, 0, len(PROMPT), number, len(raw))) + raw
        )

    ids = tensor(synthetic.IDS, "int64", np.array(PROMPT, np.int64))
    assert {"tensor 0", "ids as int64"} <= set(leaks(ids, PROMPT))
    logits = tensor(9, "float32", np.zeros((len(PROMPT), synthetic.VOCABULARY), np.float32))
    assert list(leaks(logits, PROMPT)) == [f"a row of {4 * synthetic.VOCABULARY} bytes"]
    told = encode_control(Configure(session="s", epoch=0, addresses={"a": "b"}))
    assert list(leaks(told, PROMPT)) == []
    assert _lists({"tokens": (1, [*PROMPT[:3]])}, PROMPT)
