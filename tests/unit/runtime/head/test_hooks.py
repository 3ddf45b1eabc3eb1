"""A user's balancing function that does what it should not: told once of each kind, ignored, and never waited for."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy_model
import pytest
from shared.bad_hooks import HOOKS

from llrun.errors import RunError
from llrun.head.hook import Hook, load_hook
from llrun.head.view import Event, EventKind, SequenceView, View, view_of
from llrun.programs.placement import Placement, Rates
from llrun.schema import StageRecord

NAMES = ["head", "anna", "bert"]
RECORD = numpy_model.record("head", NAMES)
ALONE = (StageRecord.on("head", 0, 7),)


def view() -> View:
    placement = Placement.of(RECORD, Rates(), frozenset(NAMES))
    return view_of(placement, RECORD.stages, (SequenceView(10, 100),), Event(EventKind.STEP), {})


def answer(hook: Hook, seen: View):
    """What the hook makes of a view, once the function is done with it."""
    assert hook.offer(seen)
    for _ in range(500):
        found = hook.take()
        if not hook.busy:
            return found
        time.sleep(0.01)
    raise AssertionError("the function never came back")


class Raising(Sequence):
    """What looks like a sequence and is none."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        raise KeyError("no stage for you")


def quits(view):
    sys.exit(3)


def breaks(view):
    raise ValueError("two\nlines")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (breaks, "raised ValueError: two; lines (test_hooks.py, line "),
        (quits, "raised SystemExit: 3 (test_hooks.py, line "),
        (lambda view: "head", "returned str, neither a sequence of stages nor None"),
        (lambda view: {"head": 7}, "returned dict, neither a sequence of stages nor None"),
        (lambda view: Raising(), "returned what are no stages: KeyError: 'no stage for you'"),
        (lambda view: [StageRecord.on("head", "all", 7)], "returned what are no stages: ValidationError"),
        (lambda view: [StageRecord.on(3, 0, 7)], "returned what are no stages: ValidationError"),
        (lambda view: [StageRecord.on("head", -1, 7)], "returned what are no stages: ValidationError"),
        (lambda view: [], "asked for what cannot be: the stages end at block 0, the model at 7"),
        (lambda view: [StageRecord.on("head", 0, 6)], "asked for what cannot be: the stages end at block 6"),
        (lambda view: [StageRecord((), (), (0, 7), 0)], "asked for what cannot be: blocks 0 to 6 are on 0 devices"),
        (
            lambda view: [StageRecord.on("head", 0, 1), StageRecord.on("zoe", 1, 6), StageRecord.on("head", 6, 7)],
            "asked for what cannot be: zoe is not a device of this bundle",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_once_and_ignored(function, said):
    notes: list[str] = []
    hook = Hook(function, notes.append)
    for _ in range(3):
        assert answer(hook, view()) is None
    hook.close()
    assert len(notes) == 1
    assert notes[0].startswith(f"the balancing function {said}"), notes
    assert notes[0].endswith("; the stages stay as they are")


@pytest.mark.parametrize("name", sorted(HOOKS.keys() - {"sleeps", "spins"}))
def test_what_no_runtime_should_suffer_from_is_told_once(name: str, tmp_path: Path):
    """benchmarks/balancing/hooks.py in short."""
    (tmp_path / "bad.py").write_text(HOOKS[name])
    notes: list[str] = []
    hook = Hook(load_hook(f"{tmp_path}/bad.py:rebalance"), notes.append)
    for _ in range(3):
        assert answer(hook, view()) is None
    hook.close()
    assert len(notes) == 1, notes


NEVER = """
import sys, time
from llrun.head.hook import Hook, load_hook
hook = Hook(load_hook(f"{sys.argv[1]}:rebalance"), print, deadline_s=0.05)
assert hook.offer(None)
time.sleep(0.1)
assert not hook.offer(None) and not hook.offer(None)
hook.close()
"""


@pytest.mark.parametrize("name", ["sleeps", "spins"])
def test_what_never_comes_back_keeps_no_program_from_its_end(name: str, tmp_path: Path):
    (tmp_path / "bad.py").write_text(HOOKS[name])
    words = [sys.executable, "-c", NEVER, str(tmp_path / "bad.py")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    assert "has not returned within 0.05 s: it is ignored" in done.stdout


def test_each_kind_of_fault_is_told_and_the_function_is_asked_again():
    notes: list[str] = []
    answers = iter([ZeroDivisionError("a"), ZeroDivisionError("b"), 7, 8, None, RECORD.stages, list(ALONE)])

    def function(view):
        result = next(answers)
        if isinstance(result, Exception):
            raise result
        return result

    hook = Hook(function, notes.append)
    seen = view()
    assert [answer(hook, seen) for _ in range(6)] == [None] * 6
    assert answer(hook, seen) == (seen, ALONE)
    assert [note.split(" ")[3] for note in notes] == ["raised", "returned"]


def test_a_function_that_sleeps_is_neither_waited_for_nor_called_again():
    notes: list[str] = []
    calls, wake = [], threading.Event()

    def sleeps(view):
        calls.append(view)
        wake.wait()
        return ALONE

    hook, seen = Hook(sleeps, notes.append, deadline_s=0.02), view()
    assert hook.offer(seen)
    time.sleep(0.05)
    assert [hook.offer(seen) for _ in range(20)] == [False] * 20
    assert (len(calls), len(notes)) == (1, 1)
    assert "has not returned within 0.02 s: it is ignored" in notes[0]
    wake.set()  # what comes too late is not taken, and told no more
    while not hook.offer(seen):
        assert hook.take() is None
    assert len(notes) == 1


def test_a_late_answer_is_told_of_though_nothing_was_offered_meanwhile():
    notes: list[str] = []
    hook, done = Hook(lambda view: time.sleep(0.05) or ALONE, notes.append, deadline_s=0.01), view()
    assert hook.offer(done)
    while hook.busy:
        assert hook.take() is None
    assert len(notes) == 1


def test_an_answer_in_time_is_taken_however_late_one_looks():
    hook, seen = Hook(lambda view: ALONE, pytest.fail, deadline_s=0.2), view()
    assert hook.offer(seen)
    time.sleep(0.3)
    assert not hook.offer(seen)
    assert hook.take() == (seen, ALONE)


# --- finding it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import sys\nsys.exit(1)", "cannot be imported: SystemExit: 1 (mine.py, line 2)"),
        ("\n\n1 / 0", "cannot be imported: ZeroDivisionError: division by zero (mine.py, line 3)"),
        ("def rebalance(view:", "cannot be imported: SyntaxError"),
        ("rebalance = 3", "has no function rebalance"),
        ("def rebalance(): ...", "it cannot be called with one view: too many positional arguments"),
        ("def rebalance(view, other): ...", "it cannot be called with one view: missing a required argument"),
    ],
)
def test_a_file_that_is_wrong(tmp_path: Path, text: str, said: str):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(RunError) as caught:
        load_hook(f"{tmp_path}/mine.py:rebalance")
    assert said in caught.value.message
    assert (caught.value.code, caught.value.exit_code) == ("R125", 2)


def test_a_file_may_hold_dataclasses_and_callable_objects(tmp_path: Path):
    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n@dataclass\nclass Mine:\n"
        "    factor: int\n    def __call__(self, view):\n        return self.factor * view\n\nmine = Mine(2)\n"
    )
    (tmp_path / "mine.py").write_text(text)
    assert load_hook(f"{tmp_path}/mine.py:mine")(4) == 8


def test_a_module_of_the_present_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "night_of_this_folder.py").write_text("def rebalance(view):\n    return 7\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert load_hook("night_of_this_folder:rebalance")(None) == 7
    assert sys.path == before
