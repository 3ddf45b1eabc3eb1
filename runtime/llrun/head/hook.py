"""Users' balancing functions: found by name, and called where they can do no harm."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from types import ModuleType, TracebackType
from typing import NamedTuple

import msgspec

from llrun.errors import RunError, printable
from llrun.head.controls import Note
from llrun.head.options import Rebalance
from llrun.head.view import View
from llrun.schema import StageRecord

DEADLINE_S = 2.0
LONGEST = 300  # characters of an exception that are told
CODE = "R125"
RAISED, LATE, NONSENSE, IMPOSSIBLE = "raised", "late", "nonsense", "impossible"  # kinds of fault


class Guard:
    """Lets nothing out of a `with` that runs a user's code; `error` is what was raised, None where nothing was.

    Whatever it raises is its own fault, sys.exit included. A person's Ctrl-C is none.
    """

    error: BaseException | None = None

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.error = error
        return not isinstance(error, KeyboardInterrupt)

    def __str__(self) -> str:
        """Type and text, and the line that raised it."""
        trace, where = self.error.__traceback__ if self.error else None, ""
        while trace is not None:
            where = f" ({Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno})"
            trace = trace.tb_next
        text = "; ".join(str(self.error).splitlines())[:LONGEST]
        return printable(f"{type(self.error).__name__}: {text}{where}")


# --- finding it ----------------------------------------------------------------------------------------------------


def load_hook(text: str) -> Rebalance:
    """The function that MODULE:FUNCTION or FILE.py:FUNCTION names. Raises RunError R125 that says what is wrong."""
    where, colon, name = text.rpartition(":")
    if not (where and colon and name.isidentifier()):
        raise RunError(
            CODE, f"--rebalance takes auto, off, MODULE:FUNCTION or FILE.py:FUNCTION, not {text!r}"
        )
    function: object = getattr(_module(where), name, None)
    if not callable(function):
        raise RunError(CODE, f"--rebalance {text}: {where} has no function {name}")
    _check_call(text, function)
    return function


def _check_call(text: str, function: Callable[..., object]) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:
        return  # some of C's say nothing of what they take
    try:
        signature.bind(None)
    except TypeError as error:
        raise RunError(CODE, f"--rebalance {text}: it cannot be called with one view: {error}") from error


def _module(where: str) -> ModuleType:
    with Guard() as guard:
        module = _of_file(where) if where.endswith(".py") else _of_name(where)
    if isinstance(guard.error, RunError):
        raise guard.error
    if guard.error:
        raise RunError(CODE, f"--rebalance: {where} cannot be imported: {guard}") from guard.error
    return module


def _of_file(where: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"llrun_hook_{Path(where).stem}", where)
    if spec is None or spec.loader is None or not Path(where).is_file():
        raise RunError(CODE, f"--rebalance: there is no file {where}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as an import does: dataclasses look for themselves there
    spec.loader.exec_module(module)
    return module


def _of_name(name: str) -> ModuleType:
    with _from_here():
        return importlib.import_module(name)


@contextmanager
def _from_here() -> Iterator[None]:
    """Modules of the present folder are found, as they are by `python -m`."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


# --- calling it ----------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """What came of a view: `stages` that are wanted, or `fault`, a kind and a text, or neither."""

    view: View
    stages: tuple[StageRecord, ...] | None = None
    fault: tuple[str, str] | None = None


class Hook:
    """Calls a balancing function on a thread of its own, for one view at a time. What it raises, returns wrongly, asks
    for in vain or does not return within DEADLINE_S is told to `note`, once of each kind, and ignored: tokens go on.

    `offer` never waits: while the function is busy, a view is not taken. What comes too late is not taken either.
    """

    def __init__(self, function: Rebalance, note: Note, deadline_s: float = DEADLINE_S) -> None:
        self._function = function
        self._note = note
        self._deadline_s = deadline_s
        self._views: SimpleQueue[View | None] = SimpleQueue()
        self._answers: SimpleQueue[Answer] = SimpleQueue()
        self._since: float | None = None  # when a view was given whose answer has not been taken
        self._told: set[str] = set()
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether a view was given whose answer has not been taken."""
        return self._since is not None

    def offer(self, view: View) -> bool:
        """Have the function called with a view; False while it is busy with another."""
        if self._since is not None:
            if self._answers.empty() and time.monotonic() - self._since > self._deadline_s:
                self.report(LATE, self._too_late)
            return False
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="rebalance", daemon=True)
            self._thread.start()
        self._since = time.monotonic()
        self._views.put(view)
        return True

    def take(self) -> tuple[View, tuple[StageRecord, ...]] | None:
        """The stages that the function wants and that there could be, and the view that it saw."""
        try:
            answer = self._answers.get_nowait()
        except Empty:
            return None
        self._since = None
        if answer.fault is not None:
            self.report(*answer.fault)
        return None if answer.stages is None else (answer.view, answer.stages)

    def report(self, kind: str, what: str) -> None:
        """Tell of a fault of the function, once of each kind."""
        if kind not in self._told:
            self._told.add(kind)
            self._note(f"the balancing function {what}; the stages stay as they are")

    def close(self) -> None:
        """It is not called again. One that is busy is left behind: its thread ends with it, or with the process."""
        self._views.put(None)

    @property
    def _too_late(self) -> str:
        return f"has not returned within {self._deadline_s:g} s: it is ignored"

    def _run(self) -> None:
        while (view := self._views.get()) is not None:
            began, result = time.monotonic(), None
            with Guard() as guard:
                result = self._function(view)
            if guard.error:
                answer = Answer(view, fault=(RAISED, f"raised {guard}"))
            elif time.monotonic() - began > self._deadline_s:
                answer = Answer(view, fault=(LATE, self._too_late))
            else:
                answer = checked(view, result)
            self._answers.put(answer)


def checked(view: View, result: object) -> Answer:
    """What a function returned for a view, if it is None or stages that there could be."""
    if result is None:
        return Answer(view)
    stages, faults = tuple[StageRecord, ...](), list[str]()
    with Guard() as guard:
        if isinstance(result, str) or not isinstance(result, Sequence):
            raise _NoStages(type(result).__name__)
        if not all(isinstance(each, StageRecord) for each in result):
            raise _NoStages(type(result).__name__)
        # Nothing looked at a stage's fields when the function made it: that is done here.
        stages = msgspec.convert(msgspec.to_builtins(tuple(result)), tuple[StageRecord, ...])
        faults = view.faults(stages) if stages != view.stages else []
    if isinstance(guard.error, _NoStages):
        what = f"returned {guard.error}, neither a sequence of stages nor None"
        return Answer(view, fault=(NONSENSE, what))
    if guard.error:
        return Answer(view, fault=(NONSENSE, f"returned what are no stages: {guard}"))
    if faults:
        return Answer(view, fault=(IMPOSSIBLE, f"asked for what cannot be: {faults[0]}"))
    return Answer(view, None if stages == view.stages else stages)


class _NoStages(Exception):
    """The name of the type that was returned instead of stages."""
