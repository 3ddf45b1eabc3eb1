"""Whoever knows what to say gets in, however many others are at the door; and nobody learns anything there."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy_model
import pytest

from llrun.errors import RunError
from llrun.head.controls import BUSY
from llrun.requests.conversation import generate
from llrun.requests.sampling import Sampling
from llrun.requests.scheduler import Scheduler
from llrun.wire.handshake import Refusal, dial, read_message
from llrun.wire.messages import Configure, Connect, Failed, Hello
from llrun.wire.protocol import CONTROL, Header, encode_control, pack_header
from llrun.wire.transport import Connection, ConnectionLost, Tcp
from llrun.worker import door, session
from llrun.worker.door import who_leaves
from llrun.worker.neighbours import check_dial

NAMES = ["head", "anna", "bert"]


@pytest.fixture
def strangers():
    running = []

    def come(address: str, kind: str, count: int) -> None:
        command = [sys.executable, str(Path(__file__).parents[1] / "strangers.py"), address, kind, str(count)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert running[-1].stdout.readline() == "connected\n"

    yield come
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("kind", "count"), [("idle", 40), ("idle", 200), ("reconnect", 32), ("reconnect", 150)]
)
def test_the_owner_gets_in_past_strangers_of_the_same_address(cluster, strangers, monkeypatch, kind, count):
    monkeypatch.setattr(door, "HANDSHAKE_S", 60.0)  # the silent do not leave by themselves
    workers, notes = cluster(NAMES), []
    for address in workers.addresses.values():
        strangers(address, kind, count)
    with workers.session(10.0, notes.append) as owner:
        result = generate(Scheduler(owner), [5, 6, 7], 4, Sampling(), lambda token: True)
    assert list(result.tokens) == numpy_model.greedy([5, 6, 7], 4)
    assert len(notes) <= 2


def test_strangers_take_a_bounded_number_of_threads(cluster, strangers):
    address = cluster(NAMES).addresses["anna"]
    strangers(address, "idle", 300)
    for _ in range(20):
        handshakes = [thread for thread in threading.enumerate() if thread.name == "handshake"]
        assert len(handshakes) <= door.MAX_HANDSHAKES
        time.sleep(0.02)


def test_the_longest_silent_of_the_address_that_holds_most_leaves():
    a, b, c, d = (object() for _ in range(4))
    assert who_leaves({a: "10.0.0.9", b: "10.0.0.1", c: "10.0.0.1", d: "10.0.0.2"}) is b
    assert who_leaves({a: "10.0.0.9", b: "10.0.0.1"}) is a


def test_a_stranger_is_sent_no_large_message(cluster):
    host, port = cluster(NAMES).addresses["anna"].rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=5) as sock:
        sock.sendall(pack_header(Header(CONTROL, 0, 0, 0, 0, 0, 0, 0, 4097)))
        assert b"a message of 4097 bytes where at most 4096 are due" in sock.recv(4096)


def test_a_stranger_does_not_learn_the_bundle(cluster):
    hello = Hello("c" * 64, "head", "control")
    with pytest.raises(Refusal, match="it does not run bundle cccccccccccc: copy its slice again") as caught:
        dial(Tcp(), "anna", cluster(NAMES).addresses["anna"], hello, 5.0)
    assert numpy_model.BUNDLE[:4] not in caught.value.message


# --- where a head may send a worker ---

DESCRIBED = ["10.0.0.2:5700", "pi.local:5701", "[fd00::2]:5700", "127.0.0.1:5702"]


@pytest.mark.parametrize(
    ("address", "head"),
    [
        ("10.0.0.2:5700", "10.0.0.1"),
        ("10.0.0.2:6000", "10.0.0.1"),  # as another port given with --listen
        ("[::ffff:10.0.0.2]:5700", "10.0.0.1"),
        ("PI.local:5701", "10.0.0.1"),
        ("[fd00:0::2]:5700", "10.0.0.1"),
        ("10.0.0.1:22", "10.0.0.1"),  # the head's own machine
        ("127.0.0.1:40001", "127.0.0.1"),  # --local
        ("127.0.0.1:40001", "::1"),
        ("localhost:40001", "127.0.0.1"),
        ("127.0.0.1:5702", "10.0.0.1"),  # as the slice says
    ],
)
def test_hosts_of_the_slice_and_the_heads_are_dialled(address, head):
    check_dial("bert", address, DESCRIBED, head)


@pytest.mark.parametrize(
    ("address", "head"),
    [
        ("10.0.0.3:5700", "10.0.0.1"),
        ("198.51.100.1:80", "10.0.0.1"),
        ("evil.example:5700", "10.0.0.1"),
        ("pi.local.evil.example:5701", "10.0.0.1"),
        ("127.0.0.1:22", "10.0.0.1"),
        ("127.0.0.2:22", "10.0.0.1"),
        ("[::1]:22", "10.0.0.1"),
        ("localhost:22", "10.0.0.1"),
        ("[::ffff:127.0.0.1]:22", "10.0.0.1"),
        ("10.0.0.3:5700", "127.0.0.1"),
        ("0.0.0.0:22", "10.0.0.1"),
    ],
)
def test_nothing_else_is_dialled(address, head):
    with pytest.raises(
        RunError, match=r"device bert is: that host is not in its slice. Start it with --peer"
    ):
        check_dial("bert", address, DESCRIBED, head)


def as_the_head(address: str) -> Connection:
    """A control connection to anna; as a head does, again while the session before it is still ending."""
    until = time.monotonic() + 10
    while True:
        try:
            return dial(Tcp(), "anna", address, Hello(numpy_model.BUNDLE, "head", "control"), 5.0)
        except Refusal as refusal:
            if refusal.code != BUSY or time.monotonic() > until:
                raise
            time.sleep(0.05)


def told_to_connect(address: str, target: str) -> str:
    """What the worker at `address` answers when it is told that its neighbour is at `target`."""
    control = as_the_head(address)
    hello = Hello(numpy_model.BUNDLE, "head", "data", "s" * 32)
    addresses = {"head": "127.0.0.1:1", "anna": address, "bert": target}
    control.send(encode_control(Configure("s" * 32, 1, addresses)))
    while type(read_message(control)).__name__ != "Configured":
        pass
    links = dial(Tcp(), "anna", address, hello, 5.0)
    control.send(encode_control(Connect()))
    try:
        while not isinstance(said := read_message(control), Failed):
            pass
    finally:
        control.close()
        links.close()
    return said.reason


def greet(server: socket.socket) -> None:
    with suppress(OSError):
        while True:
            with server.accept()[0] as sock:
                sock.sendall(b"SSH-2.0-OpenSSH_9.2 secret" * 9)


def test_a_worker_does_not_say_what_answers(cluster, monkeypatch):
    """Not a port that is closed, nor one where something else listens, nor an address that is not dialled at all."""
    monkeypatch.setattr(session, "CONNECT_S", 0.5)
    workers = cluster(NAMES)
    address = workers.addresses["anna"]
    closed = Tcp().listen("127.0.0.1:0")
    closed.close()
    speaks = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=greet, args=(speaks,), daemon=True).start()
    open_port = f"127.0.0.1:{speaks.getsockname()[1]}"
    reasons = []
    for target in (closed.address, open_port):
        said = told_to_connect(address, target)
        assert target in said
        reasons.append(said.replace(target, "TARGET"))
    assert reasons[0] == reasons[1]
    assert "SSH" not in reasons[1]
    assert any("SSH" in note for note in workers.notes)
    assert "not in its slice" in told_to_connect(address, "198.51.100.1:80")
    speaks.close()


def test_a_worker_takes_the_place_of_a_neighbour_from_its_own_command_line():
    moved = [*DESCRIBED, "10.0.0.3:5700"]
    check_dial("bert", "10.0.0.3:5700", moved, "10.0.0.1")


def test_listening_ends_with_its_listener(cluster):
    workers = cluster(NAMES)
    workers.listeners[0].close()
    with pytest.raises(ConnectionLost):
        dial(Tcp(), "anna", workers.addresses["anna"], Hello(numpy_model.BUNDLE, "head", "control"), 1.0)


def test_another_program_at_a_workers_address_is_named(cluster):
    workers, speaks = cluster(NAMES), socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=greet, args=(speaks,), daemon=True).start()
    workers.addresses["bert"] = f"127.0.0.1:{speaks.getsockname()[1]}"
    named = rf"what listens at {workers.addresses['bert']} is not device bert"
    with pytest.raises(RunError, match=named), workers.session():
        pass
    speaks.close()
