"""Devices that die, freeze or leave: the request ends in time and names them; the others go on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy_model
import pytest
from losses import irreplaceable

from llrun.engine.engine import Engine
from llrun.errors import RunError
from llrun.head import controls
from llrun.head.session import Session
from llrun.requests.conversation import generate
from llrun.requests.sampling import Sampling
from llrun.requests.scheduler import Scheduler
from llrun.wire.messages import Held
from llrun.wire.transport import Tcp

HERE = Path(__file__).parents[1]
NAMES = ["head", "anna", "bert"]


class Processes:
    def __init__(self) -> None:
        self.running: dict[str, subprocess.Popen[str]] = {}
        self.addresses: dict[str, str] = {}
        for name in NAMES[1:]:
            self.start(name)

    def start(self, name: str) -> None:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "numpy_worker.py"), name, ",".join(NAMES)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout
        self.running[name] = process
        self.addresses[name] = process.stdout.readline().strip()

    def end(self) -> None:
        for process in self.running.values():
            process.kill()
            process.communicate()

    def session(self) -> Session:
        return Session(numpy_model.device("head", NAMES), Tcp(), self.addresses, 30.0)


@pytest.fixture
def workers():
    processes = Processes()
    yield processes
    processes.end()


def fail_while_generating(workers: Processes, harm, after_s: float = 0.3) -> tuple[RunError, float]:
    """The error of a long request during which `harm` is done, and the seconds from the harm to the error."""
    harmed = []

    def later() -> None:
        harmed.append(time.monotonic())
        harm()

    timer = threading.Timer(after_s, later)
    with irreplaceable(workers.session()) as session:
        timer.start()
        with pytest.raises(RunError) as caught:
            generate(Scheduler(session), [1, 2, 3], 200, Sampling(), lambda token: True)
        return caught.value, time.monotonic() - harmed[0]


def next_request_works(workers: Processes) -> None:
    with workers.session() as session:
        result = generate(Scheduler(session), [5, 6, 7], 4, Sampling(), lambda token: True)
    assert list(result.tokens) == numpy_model.greedy([5, 6, 7], 4)


@pytest.mark.parametrize("victim", ["anna", "bert"])
def test_killed_worker_is_named_and_the_other_serves_on(workers, victim):
    error, seconds = fail_while_generating(workers, workers.running[victim].kill)
    assert victim in error.message
    assert error.exit_code == 1
    assert seconds < 5
    workers.running.pop(victim).communicate()
    workers.start(victim)
    next_request_works(workers)


def test_frozen_worker_is_named_in_about_five_seconds(workers):
    pid = workers.running["bert"].pid
    error, seconds = fail_while_generating(workers, lambda: os.kill(pid, signal.SIGSTOP))
    assert "bert" in error.message
    assert seconds < 7
    os.kill(pid, signal.SIGCONT)
    next_request_works(workers)


def test_workers_drop_a_head_that_is_gone(workers):
    script = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "import numpy_model\n"
        "from llrun.head.session import Session; from llrun.wire.transport import Tcp\n"
        "addresses = dict(pair.split('=') for pair in sys.argv[2].split(','))\n"
        "head = numpy_model.device('head', ['head', 'anna', 'bert'])\n"
        "with Session(head, Tcp(), addresses, 9.0) as session:\n"
        "    number = session.open()\n"
        "    session.history(number).extend([1, 2, 3, 4] * 20)\n"
        "    session.feed([number])\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    pairs = ",".join(f"{name}={address}" for name, address in workers.addresses.items())
    died = subprocess.run([sys.executable, "-c", script, str(HERE), pairs], capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    next_request_works(workers)


def test_workers_free_the_caches_of_a_head_that_is_gone(cluster, monkeypatch):
    """At once, not when the next head comes."""
    engines: list[Engine] = []

    class Kept(Engine):
        def __init__(self, *arguments, **named) -> None:
            super().__init__(*arguments, **named)
            engines.append(self)

    monkeypatch.setattr("llrun.worker.session.Engine", Kept)
    with cluster(NAMES).session() as session:
        generate(Scheduler(session), [1, 2, 3], 4, Sampling(), lambda token: True)
        number = session.open()
        session.history(number).extend([1, 2, 3, 4] * 5)
        session.feed([number])
        while session.pop_logits() is None:
            session.take()
        session.measure()  # who answers has done what came before
        held = {engine.sequences.held() for engine in engines}
        assert held == {(Held(number, 1, 3, 20),), (Held(number, 3, 5, 20),)}
        for name in NAMES[1:]:
            session._cluster.controls.connection(name).close()  # as when its process ends
        until = time.monotonic() + 5
        while any(engine.sequences.numbers for engine in engines) and time.monotonic() < until:
            time.sleep(0.01)
        stores = [engine.sequences for engine in engines]
        assert [store.held() for store in stores] == [(), ()]
        assert not any(array.any() for store in stores for b in store.entries for array in store.caches(b))


def test_a_head_that_was_frozen_is_given_up_and_goes_on_when_it_may(workers):
    """Its workers serve the next head without a restart, and it again when that one is done."""
    pairs = ",".join(f"{name}={address}" for name, address in workers.addresses.items())
    frozen = subprocess.Popen(
        [sys.executable, str(HERE / "numpy_head.py"), ",".join(NAMES), pairs, "40", "20"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert frozen.stdout
        lines = [frozen.stdout.readline() for _ in range(3)]
        frozen.send_signal(signal.SIGSTOP)
        next_request_works(workers)
        frozen.send_signal(signal.SIGCONT)
        lines += frozen.communicate(timeout=30)[0].splitlines()
    finally:
        frozen.kill()
        frozen.communicate()
    assert [line.strip() for line in lines] == [str(token) for token in numpy_model.greedy([1, 2, 3], 40)]
    assert all(process.poll() is None for process in workers.running.values())


def free_address() -> str:
    listener = Tcp().listen("127.0.0.1:0")
    listener.close()
    return listener.address


def test_unreachable_worker_is_named():
    address = free_address()
    session = Session(numpy_model.device("head", NAMES), Tcp(), {"anna": address, "bert": address}, 0.3)
    with (
        pytest.raises(RunError, match=r"cannot reach device anna at .*Is llrun running there") as caught,
        session,
    ):
        pass
    assert caught.value.code == "R302"


def test_a_worker_that_comes_late_is_waited_for(cluster, monkeypatch):
    """Longer than a silent device is borne: those that are there already go on living."""
    monkeypatch.setattr(controls, "HEAD_PATIENCE_S", 1.0)
    workers, late, notes = cluster(NAMES[:2], plan=NAMES), free_address(), []
    threading.Timer(2.5, lambda: workers.start("bert", late)).start()
    workers.addresses["bert"] = late
    with workers.session(note=notes.append) as session:
        result = generate(Scheduler(session), [5, 6, 7], 4, Sampling(), lambda token: True)
    assert list(result.tokens) == numpy_model.greedy([5, 6, 7], 4)
    assert notes[0].startswith(f"waiting for device bert at {late}: connection refused")
    assert workers.notes == []


def test_one_that_is_lost_while_another_is_waited_for_is_named(workers):
    workers.addresses["bert"] = free_address()
    session = workers.session()
    threading.Timer(1.0, workers.running["anna"].kill).start()
    with pytest.raises(RunError, match="device anna was lost"), session:
        pass


class Relay:
    """A network in front of a worker: passes bytes on until it is cut, and then is silent."""

    def __init__(self, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self._behind = (host, int(port))
        self._cut = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self._open: list[socket.socket] = [self._server]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._cut.set()

    def close(self) -> None:
        for sock in self._open:
            sock.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(self._behind)
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if self._cut.is_set():
                    return
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


def test_a_cut_network_is_noticed_in_about_five_seconds(workers):
    relay = Relay(workers.addresses["bert"])
    direct = workers.addresses["bert"]
    workers.addresses["bert"] = relay.address
    error, seconds = fail_while_generating(workers, relay.cut)
    assert "bert" in error.message
    assert seconds < 7
    relay.close()
    workers.addresses["bert"] = direct
    next_request_works(workers)
