"""Many conversations on one session: who may begin, whose logits they are, what is computed together."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence

from llrun.errors import INTERNAL, RunError
from llrun.head.replies import Logits, Reply, Said
from llrun.head.session import Session
from llrun.requests.line import Line
from llrun.requests.prefixes import Prefixes
from llrun.requests.request import Handle, Request, Result, State, check_ids, tokens_allowed
from llrun.wire.messages import Measured, Opened, Rejected, StepsDone

MAX_WAITING = 256


class Scheduler:
    """All requests of one session, of which it is the only user.

    Requests begin in the order in which they were submitted, as far as the devices have room for their
    sequences; a bounded number waits. The next tokens of all that have one are computed in one pass; that of one
    alone with guesses at those after it, where that pays: the tokens are the same. What is wrong with one request (bad
    input, no room, logits that are no numbers, an error of its sink) is that request's error alone; a device that is
    lost ends the session, and every request with it.

    Threads: one drives, by `step`, `run_until` and `close`. `submit` and `Handle.cancel` may be called from
    any; what they ask for is done in the driver's next step, which they wake. Sinks run on the driver's.
    """

    def __init__(
        self,
        session: Session,
        max_waiting: int = MAX_WAITING,
        slots: int | None = None,
        kept: int = 0,
        speculate: bool = True,
    ) -> None:
        """`slots`: sequences at once, where fewer are wanted than the devices have room for. `kept`: as `tokens` of
        Prefixes. `speculate`: whether tokens may be guessed."""
        self._session = session
        self._speculate = speculate
        self._slots = slots
        self._prefixes = Prefixes(session, kept)
        self._max_waiting = max_waiting
        self._model = session.device.record.model
        self._ends = frozenset(self._model.eos_token_ids)
        self._lock = threading.Lock()
        self._submitted: deque[tuple[Handle, Line]] = deque()
        self._cancels: deque[Handle] = deque()
        self._waiting: deque[tuple[Handle, Line]] = deque()
        self._changed = False  # so that one of those waiting may be able to begin
        self._lines: dict[int, Line] = {}  # by sequence, until its last figures have come
        self._opening: set[int] = set()  # of those, which not every device has answered for
        self._running: dict[Handle, Line] = {}
        self._ready: list[int] = []  # sequences whose next token can be computed
        self._flying: set[int] = set()  # those whose next token is being computed
        self._ending: deque[tuple[int, Handle, Line]] = deque()
        self._ended: RunError | None = None

    @property
    def session(self) -> Session:
        return self._session

    @property
    def room(self) -> int:
        """Sequences that can be open at once."""
        return min(self._session.sequences, self._slots or self._session.sequences)

    @property
    def load(self) -> tuple[int, int]:
        """How many requests run, and how many wait."""
        return len(self._running), len(self._submitted) + len(self._waiting)

    # --- from any thread ---

    def submit(self, request: Request, line: Line | None = None) -> Handle:
        """Take a request, of a conversation when `line` is one. Raises RunError for bad input, R402 when too
        many wait already, and what ended the session."""
        if request.ids or request.wanted != 0:
            check_ids(request.ids, self._model)
        tokens_allowed(len(request.ids), request.wanted, self._model)
        handle = Handle(request, self._wish_cancelled)
        with self._lock:
            if self._ended:
                raise self._ended
            waiting = len(self._submitted) + len(self._waiting)
            if waiting >= self._max_waiting:
                raise RunError("R402", f"{waiting} requests wait already, no more are taken", INTERNAL)
            self._submitted.append((handle, line or Line(kept=False)))
        self._session.wake()
        return handle

    def _wish_cancelled(self, handle: Handle) -> None:
        self._cancels.append(handle)
        self._session.wake()

    # --- from the driver's ---

    def step(self, wait: bool = False) -> bool:
        """Let requests begin, wait for one reply, and carry on whom it is for. False, at once, when there is
        nothing to do; with `wait`, after something was asked for. Raises RunError when the session ends."""
        try:
            if self._changed or self._submitted or self._cancels:
                self._take_logits()  # what an interrupted sink has left, which is not for who begins now
                self._take_wishes()
                self._feed_ready()  # a cancelled request may have been what they waited for
            busy = bool(self._running or self._ending or self._opening)  # so that a reply is due
            if not busy and self._waiting:
                self._refuse_first()
                return True
            if busy or wait:
                self._handle(self._session.take(bounded=busy))
            return busy or wait
        except RunError as error:
            self._end_all(error)
            raise

    def run_until(self, handle: Handle) -> Result:
        """Step until the request is done. Raises its error, and what ends the session."""
        while not handle.done and self.step():
            pass
        if handle.result is None:
            raise handle.error or AssertionError("a request of another scheduler")
        return handle.result

    def used(self, line: Line) -> int:
        """Tokens of a conversation so far, those produced among them."""
        if line.number is None or not line.opened or line.closed:
            return 0
        return len(self._session.history(line.number))

    def close(self, line: Line) -> None:
        """Forget a conversation; what it has asked for is cancelled."""
        if line.closed:
            return
        try:
            self._take_wishes()
            for handle in [handle for handle, owner in self._waiting if owner is line]:
                self._cancel(handle)
            if line.current:
                self._cancel(line.current)
            self._close(line)
        except RunError as error:
            self._end_all(error)
            raise

    # --- who may begin ---

    def _take_wishes(self) -> None:
        while self._submitted:
            with self._lock:
                self._waiting.append(self._submitted.popleft())
            self._changed = True
        while self._cancels:
            self._cancel(self._cancels.popleft())
        while self._changed:
            self._changed = False
            self._begin_those_that_can()

    def _begin_those_that_can(self) -> None:
        """Begin requests whose sequence is there and free, together; ask for sequences for the others."""
        room = self.room - sum(not line.closed for line in self._lines.values())
        beginning: list[int] = []
        left: list[tuple[Handle, Line]] = []
        for handle, line in self._waiting:
            if handle.done:
                continue
            if line.closed:
                handle.fail(RunError("R402", "the conversation was closed", INTERNAL))
            elif line.opened and line.current is None:
                beginning += self._begin(handle, line)
            else:
                if line.number is None and room > 0:
                    room -= 1
                    line.number = self._open(handle, line)
                    self._lines[line.number] = line
                    self._opening.add(line.number)
                left.append((handle, line))
        with self._lock:
            self._waiting = deque(left)
        self._session.feed(beginning)

    def _open(self, handle: Handle, line: Line) -> int:
        """Ask for a sequence, which goes on from what an earlier request has left where the prompt begins with that."""
        found = None if line.kept or line.anew else self._prefixes.longest(handle.request.ids)
        line.anew = found is None
        if found is None:
            self._make_room(1)
        return self._session.begin(*(found or ()))

    def _make_room(self, more: int = 0) -> None:
        used = [len(line.history) for line in self._lines.values() if not line.closed]
        self._prefixes.make_room(sum(used), len(used) + more)

    def _begin(self, handle: Handle, line: Line) -> list[int]:
        """Make it its sequence's request; the sequences that are to be fed for it."""
        assert line.number is not None
        history, request = self._session.history(line.number), handle.request
        ids = request.ids if line.kept else request.ids[len(history) :]
        try:
            allowed = tokens_allowed(len(ids), request.wanted, self._model, len(history))
        except RunError as error:
            self._fail(handle, line, error)
            return []
        line.begin(handle, history)
        self._running[handle] = line
        line.claims = [*line.claims[-1:], (history.queued, handle)]
        handle.reused = len(request.ids) - len(ids)
        history.extend((*ids, *request.produced))
        history.until = len(history) + allowed - len(request.produced)
        handle.begin(allowed, frozenset() if request.given else self._ends)
        if history.queued == len(history):
            self._end(handle, line)  # an empty one
            return []
        return [line.number]

    def _refuse_first(self) -> None:
        """Nothing is under way, and still there is no room: it would wait for ever."""
        with self._lock:
            handle, _ = self._waiting.popleft()
        reason = f"there is room for {self.room} conversations, and as many are open"
        handle.fail(RunError("R402", f"{reason}: close one", INTERNAL))

    # --- what comes back ---

    def _handle(self, reply: Reply) -> None:
        if isinstance(reply, list):
            self._take_logits()
        elif isinstance(reply, Said):
            device, message = reply.device, reply.message
            match message:
                case StepsDone():
                    for step in message.steps:
                        line = self._lines.get(step.sequence)
                        if line:
                            line.payer(step.position).charge(device, step)
                case Opened() | Rejected():
                    self._opened(message.sequence)
                case Measured():
                    self._finish_those_measured()

    def _opened(self, number: int) -> None:
        """A device has said whether it has room."""
        if number not in self._opening:
            return
        line = self._lines[number]
        try:
            line.opened = self._session.is_open(number)
        except RunError as error:
            self._refuse(number, line, error)
        if line.opened:
            self._opening.remove(number)
            self._changed = True

    def _refuse(self, number: int, line: Line, error: RunError) -> None:
        """A device has no room for the sequence: those who wait for it have the error, unless that was because they
        were to go on from an earlier one."""
        if not (line.kept or line.anew):
            line.anew = True
            self._opening.remove(number)
            del self._lines[number]
            line.number, self._changed = None, True
            return
        for handle, owner in self._waiting:
            if owner is line:
                handle.fail(error)
        del self._lines[number]
        self._opening.remove(number)
        line.number = None  # a conversation may ask again
        line.closed = not line.kept
        self._changed = True

    def _take_logits(self) -> None:
        while (logits := self._session.pop_logits()) is not None:
            self._flying.discard(logits.sequence)
            line = self._lines.get(logits.sequence)
            handle = line and line.current
            if line and handle:
                self._advance(handle, line, logits)
        self._feed_ready()

    def _feed_ready(self) -> None:
        if self._session.parked:
            self._make_room()  # those that run have grown
        if self._ready and (not self._flying or len(self._ready) >= self._session.batch):
            ready, self._ready = self._ready, []
            self._flying.update(ready)
            self._session.feed(ready, drafts=self._drafts(ready))

    def _drafts(self, ready: Sequence[int]) -> Mapping[int, Sequence[int]]:
        """Guesses for the one request that there is: of several the tokens are computed in one pass anyway."""
        if not self._speculate or len(self._running) > 1 or len(ready) != 1:
            return {}
        return {ready[0]: self._lines[ready[0]].guess(self._model.shapes)}

    def _advance(self, handle: Handle, line: Line, logits: Logits) -> None:
        """The request's next token, and those that were guessed right, or its end."""
        if handle.prompt_at is None:
            handle.prompt_at = time.perf_counter()
        if not handle.allowed:
            self._end(handle, line)
            return
        try:
            go_on = line.advance(handle, logits.rows)
            self._session.came(line.right)
        except RunError as error:
            self._fail(handle, line, error)
            return
        except BaseException:  # an interrupt, or a terminal that is gone: the driver's, but the request ends
            self._end(handle, line)
            raise
        if go_on:
            self._ready.append(logits.sequence)
        else:
            self._end(handle, line)

    # --- how requests end ---

    def _end(self, handle: Handle, line: Line) -> None:
        """It has its tokens; ask what they cost, which nobody else waits for."""
        self._release(handle, line)
        handle.state = State.ENDING
        self._ending.append((self._session.ask(), handle, line))
        if not line.kept:
            self._close(line, keep=not handle.cancelled)

    def _finish_those_measured(self) -> None:
        while self._ending and self._ending[0][0] <= self._session.answered:
            _, handle, line = self._ending.popleft()
            handle.finish(self._session.figures, self._session.moves)
            if line.closed and line.number is not None:
                self._lines.pop(line.number, None)

    def _fail(self, handle: Handle, line: Line, error: RunError) -> None:
        self._release(handle, line)
        handle.fail(error)
        if not line.kept:
            self._close(line)

    def _cancel(self, handle: Handle) -> None:
        if handle.state is State.WAITING:
            handle.cancelled = True
            handle.finish(self._session.figures, self._session.moves)
            self._changed = True
            for waiting, line in self._waiting:
                if waiting is handle and not line.kept:
                    self._close(line)
        elif handle.state is State.RUNNING:
            handle.cancelled = True
            line = self._running[handle]
            if line.number is not None:
                self._session.withdraw(line.number)
                self._flying.discard(line.number)  # of a token that never went no logits come
            self._end(handle, line)

    def _release(self, handle: Handle, line: Line) -> None:
        """The sequence is free for the conversation's next request."""
        self._running.pop(handle, None)
        line.current = None
        if line.number in self._ready:
            self._ready.remove(line.number)
        self._changed = True

    def _close(self, line: Line, keep: bool = False) -> None:
        if line.closed:
            return
        line.closed = self._changed = True
        if line.number is None:
            return
        if keep and self._prefixes.keep(line.number):
            self._make_room()
        else:
            self._session.close_sequence(line.number)
        self._flying.discard(line.number)
        self._opening.discard(line.number)
        if not any(owner is line for _, _, owner in self._ending):
            self._lines.pop(line.number, None)

    def end(self, error: RunError) -> None:
        """Take no more requests; those that are not done have the error."""
        self._end_all(error)

    def _end_all(self, error: RunError) -> None:
        """The session is over: so is everything that was asked of it."""
        with self._lock:
            self._ended = error
            waiting = [handle for handle, _ in (*self._submitted, *self._waiting)]
        ending = [handle for _, handle, _ in self._ending]
        for handle in (*waiting, *self._running, *ending):
            if not handle.done:
                handle.fail(error)
