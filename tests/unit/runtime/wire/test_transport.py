"""TCP: frames arrive whole and in order whatever the socket takes at once; waits end."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import numpy as np
import pytest

from llrun.wire import transport
from llrun.wire.transport import ConnectionLost, Tcp, TcpConnection


@pytest.fixture
def pair():
    listener = Tcp().listen("127.0.0.1:0")
    here = Tcp().connect(listener.address, 5.0)
    there = listener.accept()
    yield here, there
    here.close()
    there.close()
    listener.close()


def read(connection: TcpConnection, size: int) -> bytes:
    data = bytearray(size)
    connection.read_into(memoryview(data))
    return bytes(data)


def test_frames_of_many_parts(pair):
    here, there = pair
    here.send(b"head", memoryview(b"payload"))
    here.send(b"x")
    assert read(there, 12) == b"headpayloadx"


def test_what_the_socket_does_not_take_at_once_follows_in_order(pair):
    """More than the system's buffers hold, from two threads, while nobody reads."""
    here, there = pair
    frames = [np.full(1 << 20, i, np.uint8) for i in range(24)]

    def push(part: list[np.ndarray]) -> None:
        for frame in part:
            here.send(bytes([frame[0]]) * 32, frame.data)

    threads = [threading.Thread(target=push, args=(frames[i::2],)) for i in range(2)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - start < 5, "sending waited for the reader"
    seen = []
    for _ in frames:
        seen.append(read(there, 32)[0])
        assert read(there, 1 << 20) == bytes([seen[-1]]) * (1 << 20)
    assert seen[0::1] != []
    assert [i for i in seen if i % 2 == 0] == list(range(0, 24, 2))
    assert [i for i in seen if i % 2 == 1] == list(range(1, 24, 2))
    here.send(b"after")
    assert read(there, 5) == b"after"


def test_sending_and_reading_at_random_paces(pair):
    here, there = pair
    random = np.random.default_rng(4)
    sizes = random.integers(1, 1 << 19, 60).tolist()
    data = random.bytes(max(sizes))

    def push() -> None:
        for size in sizes:
            here.send(size.to_bytes(4, "little"), memoryview(data)[:size])
            if size % 3 == 0:
                time.sleep(0.001)

    sender = threading.Thread(target=push)
    sender.start()
    for size in sizes:
        assert int.from_bytes(read(there, 4), "little") == size
        assert read(there, size) == data[:size]
        if size % 5 == 0:
            time.sleep(0.004)
    sender.join()


def test_the_queue_is_bounded_and_a_full_one_is_an_end(pair, monkeypatch):
    monkeypatch.setattr(transport, "SEND_DEADLINE_S", 0.2)
    monkeypatch.setattr(transport, "QUEUE_FRAMES", 4)
    here, _ = pair
    frame = np.zeros(8 << 20, np.uint8).data
    for _ in range(5):  # the first one is under way, the queue holds its two rests and the others
        with suppress(ConnectionLost):
            here.send(frame)
    with pytest.raises(ConnectionLost, match="took nothing of 4 queued frames"):
        here.send(frame)


def test_reads_end_by_their_deadline(pair):
    here, _ = pair
    here.deadline(0.2)
    start = time.monotonic()
    with pytest.raises(ConnectionLost, match="no answer in time"):
        read(here, 1)
    assert 0.1 < time.monotonic() - start < 2


def test_a_deadline_can_be_lifted(pair):
    here, there = pair
    here.deadline(0.1)
    here.deadline(None)
    threading.Timer(0.3, there.send, [b"late"]).start()
    assert read(here, 4) == b"late"


@pytest.mark.parametrize("side", [0, 1])
def test_closing_ends_a_waiting_reader_at_both_sides(pair, side):
    ends = []

    def wait(connection: TcpConnection) -> None:
        with pytest.raises(ConnectionLost):
            read(connection, 1)
        ends.append(1)

    threads = [threading.Thread(target=wait, args=(connection,)) for connection in pair]
    for thread in threads:
        thread.start()
    pair[side].close()
    for thread in threads:
        thread.join(5)
    assert len(ends) == 2
    with pytest.raises(ConnectionLost):
        pair[side].send(b"x")


def test_closing_drains_what_is_queued(pair):
    here, there = pair
    frame = np.arange(6 << 20, dtype=np.uint8).data
    here.send(frame)
    threading.Thread(target=here.close, kwargs={"drain_s": 5.0}).start()
    assert read(there, len(frame)) == bytes(frame)


def test_bytes_that_are_heard_are_noted(pair):
    here, there = pair
    before = there.heard_at
    time.sleep(0.02)
    here.send(b"x")
    read(there, 1)
    assert there.heard_at > before


def test_nobody_listens():
    listener = Tcp().listen("127.0.0.1:0")
    listener.close()
    with pytest.raises(ConnectionLost, match=r"refused: .*Is llrun running there"):
        Tcp().connect(listener.address, 1.0)
