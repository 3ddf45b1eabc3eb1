"""Users' balancing functions: found by name, and called where they can do no harm."""

from __future__ import annotations

import importlib
import importlib.util
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType

from llrun.errors import RunError
from llrun.head.controls import Note
from llrun.head.options import Rebalance
from llrun.head.view import View
from llrun.schema import StageRecord

DEADLINE_S = 2.0


def load_hook(text: str) -> Rebalance:
    """The function that MODULE:FUNCTION or FILE.py:FUNCTION names. Raises RunError R125 that says what is wrong."""
    where, colon, name = text.rpartition(":")
    if not (where and colon and name.isidentifier()):
        raise RunError(
            "R125", f"--rebalance takes auto, off, MODULE:FUNCTION or FILE.py:FUNCTION, not {text!r}"
        )
    function = getattr(_module(where), name, None)
    if not callable(function):
        raise RunError("R125", f"--rebalance {text}: {where} has no function {name}")
    found: Rebalance = function
    return found


def _module(where: str) -> ModuleType:
    try:
        if not where.endswith(".py"):
            return importlib.import_module(where)
        spec = importlib.util.spec_from_file_location(f"llrun_hook_{Path(where).stem}", where)
        if spec is None or spec.loader is None or not Path(where).is_file():
            raise RunError("R125", f"--rebalance: there is no file {where}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except RunError:
        raise
    except Exception as error:  # whatever a user's module raises while it is imported
        reason = f"{type(error).__name__}: {error}"
        raise RunError("R125", f"--rebalance: {where} cannot be imported: {reason}") from error
    return module


class Hook:
    """Calls a balancing function on a thread of its own, for one view at a time. What it raises, returns wrongly, or
    does not return within DEADLINE_S is told to `note`, each once, and ignored: tokens go on meanwhile.

    `offer` never waits: while the function is busy, a view is not taken. What comes too late is not taken either.
    """

    def __init__(self, function: Rebalance, note: Note, deadline_s: float = DEADLINE_S) -> None:
        self._function = function
        self._note = note
        self._deadline_s = deadline_s
        self._views: SimpleQueue[View | None] = SimpleQueue()
        self._results: SimpleQueue[tuple[View, object]] = SimpleQueue()
        self._since: float | None = None  # when the function was called that has not returned
        self._told: set[str] = set()
        self._thread: threading.Thread | None = None

    def offer(self, view: View) -> bool:
        """Have the function called with a view; False while it is busy with another."""
        if self._since is not None:
            if time.monotonic() - self._since > self._deadline_s:
                self.report(f"has not returned within {self._deadline_s:g} s: it is ignored")
            return False
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="rebalance", daemon=True)
            self._thread.start()
        self._since = time.monotonic()
        self._views.put(view)
        return True

    def take(self) -> tuple[View, tuple[StageRecord, ...]] | None:
        """What the function asked for and is not known to be wrong, and the view that it saw."""
        if self._results.empty():
            return None
        view, result = self._results.get()
        late = self._since is not None and time.monotonic() - self._since > self._deadline_s
        self._since = None
        if isinstance(result, Exception):
            self.report(f"raised {type(result).__name__}: {result}")
        elif result is not None and not late:
            return self._checked(view, result)
        return None

    def report(self, what: str) -> None:
        """Tell of a fault of the function, once."""
        if what not in self._told:
            self._told.add(what)
            self._note(f"the balancing function {what}; the stages stay as they are")

    def close(self) -> None:
        self._views.put(None)

    def _checked(self, view: View, result: object) -> tuple[View, tuple[StageRecord, ...]] | None:
        if not isinstance(result, Sequence) or not all(isinstance(each, StageRecord) for each in result):
            self.report(f"returned {type(result).__name__}, neither a sequence of stages nor None")
            return None
        return view, tuple(result)

    def _run(self) -> None:
        while (view := self._views.get()) is not None:
            result: object
            try:
                result = self._function(view)
            except Exception as error:  # noqa: BLE001 - whatever a user's function raises
                result = error
            self._results.put((view, result))
