"""Another device of the bundle measures its link to a worker, whatever that does; nobody else learns anything."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import closing

import numpy_model
import pytest

from llrun.errors import RunError
from llrun.requests.conversation import generate
from llrun.requests.sampling import Sampling
from llrun.requests.scheduler import Scheduler
from llrun.version import VERSION
from llrun.wire import protocol
from llrun.wire.handshake import Refusal, dial, read_message, send_message
from llrun.wire.messages import PROBE_LIMIT, AskFigures, Hello, Probe, Probed, Refused
from llrun.wire.probe import probe
from llrun.wire.protocol import (
    BUSY,
    CONTROL,
    Header,
    ProtocolError,
    decode_control,
    encode_control,
    pack_header,
)
from llrun.wire.transport import Tcp

NAMES = ["head", "anna", "bert"]


def asked_of(address: str, device: str = "anna", bundle: str = numpy_model.BUNDLE, sender: str = "head"):
    return probe(Tcp(), device, address, bundle, sender, 5.0)


def test_a_link_is_measured_by_any_device_of_the_bundle(cluster):
    anna = cluster(NAMES).addresses["anna"]
    for sender in ("head", "bert"):
        found = asked_of(anna, sender=sender)
        assert (found.version, found.state) == (VERSION, "waiting")
        assert 0 < found.latency_s < 1
        assert found.there_bytes_per_s > 0
        assert found.back_bytes_per_s > 0


def test_a_worker_that_serves_goes_on_while_it_is_measured(cluster):
    workers = cluster(NAMES)
    with workers.session() as owner:
        found, tokens = [], []

        def measured(token: int) -> bool:
            tokens.append(token)
            if len(tokens) == 3:
                found.append(asked_of(workers.addresses["anna"]))
            return True

        generate(Scheduler(owner), [5, 6, 7], 8, Sampling(), measured)
    assert tokens == numpy_model.greedy([5, 6, 7], 8)
    assert found[0].state == "serving"


def test_strangers_and_other_bundles_are_refused_before_they_hear_anything(cluster):
    anna = cluster(NAMES).addresses["anna"]
    for words in ({"bundle": "c" * 64}, {"sender": "mallory"}):
        with pytest.raises(Refusal) as refused:
            asked_of(anna, **words)
        assert VERSION not in refused.value.message


def test_two_do_not_measure_each_other(cluster):
    anna = cluster(NAMES).addresses["anna"]
    first = dial(Tcp(), "anna", anna, Hello(numpy_model.BUNDLE, "bert", "probe"), 5.0)
    with pytest.raises(Refusal) as refused:
        asked_of(anna)
    assert refused.value.code == BUSY
    first.close()
    until = time.monotonic() + 5
    while True:  # the worker hears of the end in its own time
        try:
            assert asked_of(anna).state == "waiting"
            break
        except Refusal:
            assert time.monotonic() < until


@pytest.mark.parametrize("what", ["other message", "too much"])
def test_whatever_is_no_probe_ends_it(cluster, what):
    anna = cluster(NAMES).addresses["anna"]
    connection = dial(Tcp(), "anna", anna, Hello(numpy_model.BUNDLE, "bert", "probe"), 5.0)
    connection.deadline(5.0)
    if what == "other message":
        send_message(connection, AskFigures())
    else:
        send_message(connection, Probe(bytes(8), PROBE_LIMIT + 1))
    answer = read_message(connection)
    assert isinstance(answer, Refused)
    connection.close()
    assert asked_of(anna).state == "waiting"


def relay(address: str, bytes_per_s: float, latency_s: float) -> str:
    """The address of one that passes on what comes, so slowly both ways."""
    listener = socket.create_server(("127.0.0.1", 0))
    host, _, port = address.rpartition(":")

    def passed(source: socket.socket, to: socket.socket) -> None:
        with closing(source), closing(to):
            try:
                while piece := source.recv(1 << 14):
                    time.sleep(latency_s + len(piece) / bytes_per_s)
                    to.sendall(piece)
            except OSError:
                return

    def serve() -> None:
        near, _ = listener.accept()
        far = socket.create_connection((host, int(port)))
        for ways in ((near, far), (far, near)):
            threading.Thread(target=passed, args=ways, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return f"127.0.0.1:{listener.getsockname()[1]}"


def test_what_a_slow_link_carries_is_found(cluster):
    slow = relay(cluster(NAMES).addresses["anna"], 2e6, 0.0)
    found = asked_of(slow)
    for rate in (found.there_bytes_per_s, found.back_bytes_per_s):
        assert 0 < rate < 2.6e6


def test_one_that_answers_something_else_is_named(cluster):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"

        def answer() -> None:
            near, _ = listener.accept()
            with near:
                header = bytearray(pack_header(Header(CONTROL, 0, 0, 0, 0, 0, 0, 0, 5)))
                header[len(protocol.MAGIC)] = 99
                near.sendall(header)
                near.recv(1 << 12)

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(RunError, match=f"protocol version 99, this side speaks {protocol.VERSION}:"):
            asked_of(address)


def test_messages_of_a_probe_are_bounded():
    frame = encode_control(Probed(bytes(PROBE_LIMIT + 1), "", ""))
    with pytest.raises(ProtocolError, match="malformed"):
        decode_control(frame[32:])
