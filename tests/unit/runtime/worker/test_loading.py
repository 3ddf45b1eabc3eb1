"""A head that comes while a worker loads waits for it, and hears why it could not."""

from __future__ import annotations

import threading

import numpy_model
import pytest

from llrun.errors import RunError
from llrun.head.session import Session
from llrun.requests.conversation import generate
from llrun.requests.sampling import Sampling
from llrun.requests.scheduler import Scheduler
from llrun.wire.transport import Tcp
from llrun.worker.worker import Worker

NAMES = ["head", "anna"]
SHORT = RunError("R209", "it needs 1.42 GiB, of which this machine leaves 1.10")


class Loading:
    """A worker that loads until it is let, and the head's session with it."""

    def __init__(self, ending) -> None:
        self.go_on, self.notes, self.failures = threading.Event(), [], []
        self._ending = ending
        listener = Tcp().listen("127.0.0.1:0")
        self.address = listener.address
        self._worker = Worker(numpy_model.record("anna", NAMES), Tcp(), listener, lambda text: None)
        self.thread = threading.Thread(target=self._live, daemon=True)
        self.thread.start()

    def _live(self) -> None:
        try:
            self._worker.load(self._load)
        except RunError as error:
            self.failures.append(error)
            return
        self._worker.serve()

    def _load(self):
        self.go_on.wait(30)
        return self._ending()

    def session(self, timeout_s: float) -> Session:
        head = numpy_model.device("head", NAMES)
        return Session(head, Tcp(), {"anna": self.address}, timeout_s, self._heard)

    def _heard(self, text: str) -> None:
        self.notes.append(text)
        threading.Timer(2.0, self.go_on.set).start()


def fail():
    raise SHORT


def test_a_worker_that_loads_is_waited_for():
    """However long, since it answers: longer here than the head waits for one that says nothing."""
    worker = Loading(lambda: numpy_model.device("anna", NAMES))
    with worker.session(1.0) as session:
        session._timeout_s = 20.0
        result = generate(Scheduler(session), [5, 6, 7], 4, Sampling(), lambda token: True)
    assert list(result.tokens) == numpy_model.greedy([5, 6, 7], 4)
    assert worker.notes == [
        f"waiting for device anna at {worker.address}: it is still loading its part of the model"
    ]


def test_the_head_repeats_why_a_worker_could_not_load():
    worker = Loading(fail)
    with pytest.raises(RunError) as caught, worker.session(20.0):
        pass
    assert caught.value.code == "R209"
    assert caught.value.message == f"device anna at {worker.address} refused: {SHORT.message}"
    worker.thread.join(10)
    assert worker.failures == [SHORT]


def test_a_worker_that_cannot_load_waits_for_nobody():
    worker = Loading(fail)
    worker.go_on.set()
    worker.thread.join(3)
    assert not worker.thread.is_alive()
    assert worker.failures == [SHORT]


def test_who_is_not_of_the_bundle_is_not_told_that_it_loads():
    worker = Loading(fail)
    strangers = numpy_model.device("head", NAMES, bundle="c" * 64)
    with pytest.raises(RunError, match="it does not run bundle cccccccccccc"):
        Session(strangers, Tcp(), {"anna": worker.address}, 5.0).__enter__()
    worker.go_on.set()
