"""Connections read by who waits: what comes in pieces, what is not a token's, who wakes, and what ends."""

from __future__ import annotations

import socket
import threading
import time
from queue import SimpleQueue

import numpy as np
import numpy_model
import pytest
from numpy_model import CHUNK, CONTEXT, FIRST, WIDTH

from llrun.engine.events import Inbox, Stop
from llrun.programs.layouts import Limits
from llrun.wire.links import Links
from llrun.wire.protocol import (
    ALL_ROWS,
    DRAFTS,
    LAST_CHUNK,
    ONE_ROW,
    TENSOR,
    Header,
    pack_header,
    pack_rows,
)
from llrun.wire.pump import Pump
from llrun.wire.transport import TcpConnection

NAMES = ["head", "anna", "bert"]
LIMITS = Limits(CHUNK, CONTEXT, CHUNK * WIDTH * 4)
FLAGS = LAST_CHUNK | ONE_ROW


def header(position: int, rows: int = 1, flags: int = FLAGS, sequence: int = 0, epoch: int = 1) -> Header:
    length = (1 if flags & ONE_ROW else rows) * WIDTH * 4
    return Header(TENSOR, flags, 1, epoch, sequence, position, rows, FIRST + 2, length)


def row(position: int) -> np.ndarray:
    return np.random.default_rng(position).standard_normal((1, 1, WIDTH)).astype(np.float32)


class Nothing:
    """Transfers that never are."""

    def lost(self, device):
        pass

    def close(self):
        pass

    stop = close


class Side:
    """bert's links, and the other end of its connection with anna."""

    def __init__(self) -> None:
        self.inbox = Inbox(Pump())
        self.told: SimpleQueue[object] = SimpleQueue()
        lost = lambda device, reason: self.told.put((device, reason))  # noqa: E731
        installed = numpy_model.device("bert", NAMES).installed
        to = self.inbox.deliver, self.told.put, lost
        self.links = Links(installed, LIMITS, *to, Nothing(), self.inbox.pump)
        listener = socket.create_server(("127.0.0.1", 0))
        self.anna = socket.create_connection(listener.getsockname())
        mine, _ = listener.accept()
        listener.close()
        self.connection = TcpConnection(mine, "127.0.0.1")
        self.links.attach("anna", self.connection)

    def token(self, position: int) -> None:
        self.anna.sendall(pack_header(header(position)) + row(position).tobytes())

    def due(self, position: int) -> None:
        event = self.inbox.get()
        assert [each.position for each in event.headers] == [position]
        assert event.array.tobytes() == row(position).tobytes()

    def at_the_pump(self) -> bool:
        until = time.monotonic() + 5
        while not self.inbox.pump.reads and time.monotonic() < until:
            time.sleep(0.005)
        return self.inbox.pump.reads

    def readers(self) -> int:
        return sum(thread.name == "read anna" for thread in threading.enumerate())


@pytest.fixture
def side():
    made = Side()
    yield made
    made.links.close()
    made.anna.close()
    made.inbox.close()


def test_after_a_token_who_waits_reads_and_no_thread_does(side):
    side.token(0)
    side.due(0)
    assert side.at_the_pump()
    before = side.readers()
    for position in range(1, 50):
        side.token(position)
        side.due(position)
    assert (side.readers(), before) == (0, 0)


def test_what_comes_in_pieces_is_waited_for_and_nothing_else_meanwhile(side):
    side.token(0)
    side.due(0)
    assert side.at_the_pump()
    frame = pack_header(header(1)) + row(1).tobytes()

    def send() -> None:
        for start in range(0, len(frame), 13):
            side.anna.sendall(frame[start : start + 13])
            time.sleep(0.003)
            if start == 26:
                side.inbox.put(Stop())  # the engine hears it with half a frame there

    thread = threading.Thread(target=send)
    thread.start()
    assert isinstance(side.inbox.get(), Stop)
    side.due(1)
    thread.join()


def test_a_chunk_and_its_successors_are_a_thread_s_until_the_next_token(side):
    side.token(0)
    side.due(0)
    assert side.at_the_pump()
    chunk = header(1, rows=5, flags=0)
    parts = np.concatenate([row(position) for position in range(1, 6)], axis=1)
    for _ in range(2):
        side.anna.sendall(pack_header(chunk) + parts.tobytes())
        event = side.inbox.get()
        assert (event.headers[0].rows, event.array.tobytes()) == (5, parts.tobytes())
        assert not side.inbox.pump.reads
        assert side.readers() == 1
    side.token(6)
    side.due(6)
    assert side.at_the_pump()


def test_rows_of_several_sequences_are_tokens_too(side):
    side.token(0)
    side.due(0)
    assert side.at_the_pump()
    headers = [header(position, sequence=position) for position in (3, 7, 9)]
    rows = b"".join(row(each.position).tobytes() for each in headers)
    side.anna.sendall(pack_rows(headers) + rows)
    event = side.inbox.get()
    assert [(each.sequence, each.position) for each in event.headers] == [(3, 3), (7, 7), (9, 9)]
    assert event.array.tobytes() == rows
    assert side.inbox.pump.reads


def test_a_token_with_guesses_is_one_too(side):
    side.token(0)
    side.due(0)
    assert side.at_the_pump()
    rows = np.concatenate([row(position) for position in range(1, 6)], axis=1)
    side.anna.sendall(pack_header(header(1, 5, LAST_CHUNK | ALL_ROWS | DRAFTS)) + rows.tobytes())
    event = side.inbox.get()
    assert (event.headers[0].rows, event.array.shape) == (5, rows.shape)
    assert event.array.tobytes() == rows.tobytes()
    assert (side.inbox.pump.reads, side.readers()) == (True, 0)


def test_what_is_of_an_old_epoch_is_dropped_there_too(side):
    side.token(0)
    side.due(0)
    assert side.at_the_pump()
    side.anna.sendall(pack_header(header(1, epoch=0)) + row(1).tobytes())
    side.token(2)
    side.due(2)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"nonsense" * 8, "not a frame of this protocol"),
        (pack_header(header(CONTEXT)), "ends at position"),
        (pack_header(header(1)._replace(length=1 << 30)), "the limit is"),
        (pack_header(header(1, epoch=5)), "a tensor of epoch 5, while epoch 1 runs here"),
        (pack_header(header(1)._replace(tensor=99)), "unexpected tensor 99"),
    ],
)
def test_what_cannot_be_ends_the_session_and_says_why(side, frame, reason):
    side.token(0)
    side.due(0)
    assert side.at_the_pump()
    side.anna.sendall(frame)
    side.inbox.pump.look()
    for _ in range(100):
        if not side.told.empty():
            break
        time.sleep(0.01)
        side.inbox.pump.look()
    assert reason in str(side.told.get(timeout=5))
    assert not side.inbox.pump.reads


def test_a_connection_that_ends_is_told_and_read_no_more(side):
    side.token(0)
    side.due(0)
    assert side.at_the_pump()
    side.anna.close()
    threading.Timer(0.2, lambda: side.inbox.put(Stop())).start()
    assert isinstance(side.inbox.get(), Stop)
    assert side.told.get(timeout=5) == ("anna", "it closed the connection")
    assert not side.inbox.pump.reads
    assert side.links.connected == frozenset()


def test_a_connection_that_is_closed_here_is_told_too_and_its_number_is_free(side):
    """As by its writer, when what is sent cannot be: nobody goes round and round for it."""
    side.token(0)
    side.due(0)
    assert side.at_the_pump()
    side.connection.close()
    threading.Timer(0.2, lambda: side.inbox.put(Stop())).start()
    assert isinstance(side.inbox.get(), Stop)
    assert side.told.get(timeout=5)[0] == "anna"
    assert not side.inbox.pump.reads


def test_more_tokens_than_are_taken_end_the_session(side, monkeypatch):
    monkeypatch.setattr("llrun.engine.events.INBOX_LIMIT", 3)
    for position in range(3):
        side.token(position)
    for position in range(3, 9):
        side.token(position)
    for _ in range(200):
        side.inbox.pump.look()
        if not side.told.empty():
            break
        time.sleep(0.01)
    assert "3 tensors are waiting already" in str(side.told.get(timeout=5))


def test_another_connection_takes_its_place(side):
    side.token(0)
    side.due(0)
    assert side.at_the_pump()
    before, number = side.anna, side.connection.number
    listener = socket.create_server(("127.0.0.1", 0))
    side.anna = socket.create_connection(listener.getsockname())
    mine, _ = listener.accept()
    side.links.attach("anna", TcpConnection(mine, "127.0.0.1"))
    assert side.connection.number == -1 != number
    assert not side.inbox.pump.reads
    for position in (1, 2):
        side.token(position)
        side.due(position)
    assert side.at_the_pump()
    assert side.told.empty()
    before.close()
    listener.close()


def test_any_thread_wakes_it():
    inbox = Inbox(Pump())
    for _ in range(20):
        threading.Timer(0.01, lambda: inbox.put(Stop())).start()
        assert isinstance(inbox.get(), Stop)
    inbox.close()
    inbox.put(Stop())  # whoever comes late harms nobody


def test_spinning_in_vain_is_given_up_and_tried_again_now_and_then():
    pump, ends = Pump(), socket.socketpair()
    pump.add(ends[0].fileno(), lambda: ends[0].recv(1))
    assert [pump._spins() for _ in range(3)] == [True] * 3
    for _ in range(8):
        pump._spin(lambda: False)
    assert sum(pump._spins() for _ in range(640)) == 10
    pump._spin(lambda: True)
    assert pump._spins()
    pump.close()
    for end in ends:
        end.close()
