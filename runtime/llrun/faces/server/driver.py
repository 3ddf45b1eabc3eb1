"""The thread that a session belongs to: it drives the scheduler; requests come from the server's event loop."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum

from llrun.errors import INTERNAL, RunError
from llrun.faces.server.faults import BROKEN, OVERLOADED, STOPPED, ApiError
from llrun.head.present import Present
from llrun.head.readings import Readings
from llrun.head.session import Session
from llrun.requests.request import Handle, Request
from llrun.requests.scheduler import Scheduler
from llrun.wire.messages import Figures

JOIN_S = 10.0
Opened = Callable[[], AbstractContextManager[Session]]


class Condition(StrEnum):
    """`loading`: weights are read, devices connected. `recovering`: a device was lost, and nothing replaces it yet."""

    LOADING = "loading"
    READY = "ready"
    RECOVERING = "recovering"
    ENDED = "ended"


@dataclass(frozen=True)
class Reading:
    """What devices, links and the queue are like now."""

    readings: Readings
    present: Present
    figures: dict[str, Figures]
    moves: int
    running: int
    waiting: int
    slots: int


class Driver:
    """A session, and the one thread that uses it. `slots`: sequences at once, None as many as there is room for;
    `waiting`: requests that may wait beside them.

    The devices are started on that thread, so that with `--local` they end with it. What ends the session ends every
    request with it, and is `error` from then on. `changed` is called, on that thread, when the session is ready and
    when it has ended.
    """

    def __init__(
        self,
        opened: Opened,
        slots: int | None,
        waiting: int,
        changed: Callable[[], object],
        speculate: bool = True,
    ) -> None:
        self._opened = opened
        self._slots = slots
        self._waiting = waiting
        self._changed = changed
        self._speculate = speculate
        self._scheduler: Scheduler | None = None
        self._stopping = threading.Event()
        self._asked: deque[Future[Reading]] = deque()
        self._thread = threading.Thread(target=self._run, name="session", daemon=True)
        self.error: RunError | None = None
        self.ended = False

    def start(self) -> None:
        self._thread.start()

    # --- from any thread ---

    @property
    def condition(self) -> Condition:
        scheduler = self._scheduler
        if self.ended:
            return Condition.ENDED
        if scheduler is None:
            return Condition.LOADING
        return Condition.RECOVERING if scheduler.session.recovering else Condition.READY

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def submit(self, request: Request) -> Handle:
        """Raises RunError as Scheduler.submit does, ApiError while there is no session."""
        scheduler = self._scheduler
        if scheduler is None or self.ended:
            raise not_ready(self.condition)
        return scheduler.submit(request)

    def read(self) -> Future[Reading]:
        """What everything is like, as soon as the thread has taken a look."""
        scheduler, future = self._scheduler, Future[Reading]()
        if scheduler is None or self.ended:
            future.set_exception(not_ready(self.condition))
            return future
        self._asked.append(future)
        scheduler.session.wake()
        return future

    def stop(self) -> None:
        """End every request, the session, and the thread; wait for that, unless devices are still being started."""
        self._stopping.set()
        scheduler = self._scheduler
        if scheduler is not None:
            scheduler.session.wake()
            self._thread.join(JOIN_S)

    # --- on the thread ---

    def _run(self) -> None:
        try:
            with self._opened() as session:
                context = session.device.record.model.shapes.context
                # As much as the slots may hold that were asked for; one, which every plan has room for, else.
                kept = context * (self._slots or 1)
                scheduler = Scheduler(session, self._waiting, self._slots, kept, self._speculate)
                self._scheduler = scheduler
                session.ask()  # so that figures are there before the first request
                self._changed()
                while not self._stopping.is_set():
                    scheduler.step(wait=True)
                    self._answer(scheduler)
                self.ended = True
                scheduler.end(RunError(STOPPED, "the server was stopped", INTERNAL))
        except RunError as error:
            self.error = error
        finally:
            self.ended = True
            while self._asked:
                future = self._asked.popleft()
                if future.set_running_or_notify_cancel():
                    future.set_exception(not_ready(Condition.ENDED))
            self._changed()

    def _answer(self, scheduler: Scheduler) -> None:
        session = scheduler.session
        while self._asked:
            future = self._asked.popleft()
            if not future.set_running_or_notify_cancel():
                continue  # whoever asked waits no longer
            running, waiting = scheduler.load
            future.set_result(
                Reading(
                    session.readings,
                    session.present,
                    dict(session.figures),
                    len(session.moves),
                    running,
                    waiting,
                    scheduler.room,
                )
            )


def not_ready(condition: Condition) -> ApiError:
    """What is said instead of an answer, or of a server's health."""
    if condition is Condition.LOADING:
        return ApiError(503, "Loading model", OVERLOADED, None, "loading")
    if condition is Condition.RECOVERING:
        return ApiError(503, "A device was lost, and is not replaced yet", BROKEN, None, "recovering")
    return ApiError(503, "The devices' session has ended", BROKEN, None, "ended")
