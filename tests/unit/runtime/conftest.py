"""Workers as threads of this process, and sessions on them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy_model as synthetic
import pytest
from guessing import Guess
from losses import irreplaceable

from llrun.device.load import Device
from llrun.head.controls import silent
from llrun.head.options import Balancing
from llrun.head.session import Session
from llrun.requests.scheduler import Scheduler
from llrun.requests.speculate import Drafter
from llrun.wire.transport import Tcp, TcpListener
from llrun.worker.worker import Worker


class Cluster:
    """Workers that listen on loopback ports, each served by a thread of its own."""

    def __init__(
        self, devices: list[str], parts: dict[str, Device] | None = None, plan: list[str] | None = None
    ) -> None:
        """`plan`: all devices, where some of them start later."""
        self.devices = plan or devices
        self.parts = {name: synthetic.device(name, self.devices) for name in self.devices} | (parts or {})
        self.addresses: dict[str, str] = {}
        self.notes: list[str] = []
        self.listeners: list[TcpListener] = []
        for name in devices[1:]:
            self.start(name, "127.0.0.1:0")

    def start(self, name: str, address: str) -> None:
        listener = Tcp().listen(address)
        self.listeners.append(listener)
        self.addresses[name] = listener.address
        part = self.parts[name]
        worker = Worker(part.record, Tcp(), listener, self.notes.append)
        worker.load(lambda: part)
        threading.Thread(target=worker.serve, daemon=True, name=f"worker {name}").start()

    def session(self, timeout_s: float = 20.0, note: Callable[[str], None] = silent) -> Session:
        off = Balancing("off")  # what these tests count is of the plan as it is
        return Session(self.parts[self.devices[0]], Tcp(), self.addresses, timeout_s, note, off)

    @contextmanager
    def scheduler(
        self, timeout_s: float = 20.0, replaceable: bool = True, speculate: bool = False
    ) -> Iterator[Scheduler]:
        session = self.session(timeout_s)
        with session if replaceable else irreplaceable(session):
            yield Scheduler(session, speculate=speculate)


@pytest.fixture
def cluster() -> Callable[..., Cluster]:
    return Cluster


@pytest.fixture
def guesses(monkeypatch: pytest.MonkeyPatch) -> Callable[[Guess], None]:
    """Have all guesses at tokens made by a function."""
    monkeypatch.setattr(Drafter, "answered", lambda *_: None)
    return lambda guess: monkeypatch.setattr(Drafter, "draft", lambda _, ids, most: guess(ids, most))
