"""Workers as threads of this process, and sessions on them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy_model as synthetic
import pytest

from llrun.device.load import Device
from llrun.head.session import Session
from llrun.requests.scheduler import Scheduler
from llrun.wire.transport import Tcp, TcpListener
from llrun.worker.worker import Worker


class Cluster:
    """Workers that listen on loopback ports, each served by a thread of its own."""

    def __init__(self, devices: list[str], parts: dict[str, Device] | None = None) -> None:
        self.devices = devices
        self.parts = {name: synthetic.device(name, devices) for name in devices} | (parts or {})
        self.addresses: dict[str, str] = {}
        self.notes: list[str] = []
        self.listeners: list[TcpListener] = []
        for name in devices[1:]:
            listener = Tcp().listen("127.0.0.1:0")
            self.listeners.append(listener)
            self.addresses[name] = listener.address
            worker = Worker(self.parts[name], Tcp(), listener, self.notes.append)
            threading.Thread(target=worker.serve, daemon=True, name=f"worker {name}").start()

    def session(self, timeout_s: float = 20.0) -> Session:
        return Session(self.parts[self.devices[0]], Tcp(), self.addresses, timeout_s)

    @contextmanager
    def scheduler(self, timeout_s: float = 20.0) -> Iterator[Scheduler]:
        with self.session(timeout_s) as session:
            yield Scheduler(session)


@pytest.fixture
def cluster() -> Callable[..., Cluster]:
    return Cluster
