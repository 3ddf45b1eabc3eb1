"""Moves while tokens go on: asked for by a function, made without a token lost, doubled, changed or computed again."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import numpy_model
import pytest
from guessing import Oracle

from llrun.errors import RunError
from llrun.head import changes
from llrun.head.balancer import Balancer, Pace
from llrun.head.hook import Hook, load_hook
from llrun.head.moves import in_words
from llrun.head.openings import Openings
from llrun.head.options import Balancing
from llrun.head.session import Session
from llrun.head.view import Event, EventKind, SequenceView, View, view_of
from llrun.programs.placement import LinkRate, Placement, Rates
from llrun.requests.request import Request
from llrun.requests.scheduler import Scheduler
from llrun.schema import StageRecord
from llrun.wire.transport import Tcp

NAMES = ["head", "anna", "bert"]
RECORD = numpy_model.record("head", NAMES)
OTHERS = (
    StageRecord.on("head", 0, 1),
    StageRecord.on("bert", 1, 4),
    StageRecord.on("anna", 4, 5),
    StageRecord.on("head", 5, 7),
)


def session(workers, notes: list[str], hook) -> Session:
    return Session(workers.parts["head"], Tcp(), workers.addresses, 20.0, notes.append, Balancing(hook))


def produced(session: Session, prompts: list[list[int]], count: int) -> list[list[int]]:
    scheduler = Scheduler(session)
    handles = [scheduler.submit(Request(ids, count)) for ids in prompts]
    return [list(scheduler.run_until(handle).tokens) for handle in handles]


@pytest.mark.parametrize("sequences", [1, 4])
def test_a_move_that_a_function_asks_for(cluster, sequences):
    notes: list[str] = []
    prompts = [[3 + i, 5, 7 * i + 1] for i in range(sequences)]
    with session(cluster(NAMES), notes, lambda view: OTHERS) as moving:
        found = produced(moving, prompts, 120)
        (move,) = moving.moves
    assert found == [numpy_model.greedy(ids, 120) for ids in prompts]
    assert (move.reason, move.stages, move.epoch, move.computed_again) == ("hook", OTHERS, 2, 0)
    assert move.moved_bytes > 0
    assert notes == [in_words(move, RECORD.stages)]


@pytest.mark.parametrize("guessed", [False, True])
def test_to_and_fro(cluster, monkeypatch, guesses, guessed):
    monkeypatch.setattr(changes, "MOVES_KEPT", 2)
    if guessed:
        guesses(Oracle(numpy_model.greedy([1, 2, 3], 60), 3, 0.2))

    def swing(view: View):
        time.sleep(0.02)
        return OTHERS if view.stages == RECORD.stages else RECORD.stages

    with session(cluster(NAMES), [], swing) as moving:
        ids, again = [1, 2, 3], 0
        for rounds in range(40):
            if rounds >= 4 and moving._cluster.epoch > 3:
                break
            assert produced(moving, [ids], 60) == [numpy_model.greedy(ids, 60)]
            again += sum(move.computed_again for move in moving.moves)
        assert again == 0
        # Only so many are kept, however many there were: the newest.
        epoch = moving._cluster.epoch
        assert [move.epoch for move in moving.moves] == [epoch - 1, epoch]


def test_a_request_that_goes_on_from_another_while_a_move_ends_has_what_that_left(cluster, monkeypatch):
    """It is open once the last rows have been sent, so its own are to follow."""
    first, told = [*range(20)], []
    done, opened = changes.Changes._round_done, Openings.opened
    late: list[changes.Changes] = []

    def round_done(self: changes.Changes) -> None:
        if self.phase == changes.Phase.CLOSING and not told:
            told.append(scheduler.submit(Request([*first, 7], 5)))
            late.append(self)
        else:
            done(self)

    def is_opened(self: Openings, device: str, number: int) -> None:
        opened(self, device, number)
        if late and number in self._feeding:
            done(late.pop())

    monkeypatch.setattr(changes.Changes, "_round_done", round_done)
    monkeypatch.setattr(Openings, "opened", is_opened)
    begun = threading.Event()
    with session(cluster(NAMES), [], lambda view: OTHERS if begun.is_set() else None) as moving:
        scheduler = Scheduler(moving, kept=numpy_model.CONTEXT)
        scheduler.run_until(scheduler.submit(Request(first, 1)))
        begun.set()
        long = scheduler.submit(Request([60], 120))
        assert list(scheduler.run_until(long).tokens) == numpy_model.greedy([60], 120)
        (second,) = told
        assert list(scheduler.run_until(second).tokens) == numpy_model.greedy([*first, 7], 5)
        assert (second.reused, len(moving.moves)) == (20, 1)


def test_a_slow_device_is_known_as_slow_after_a_move(cluster):
    """What is measured then is set beside the plan, not beside what was measured before."""
    slow = numpy_model.library(t1=lambda *each: time.sleep(0.005) or numpy_model.mix(*each))
    workers = cluster(NAMES, {"anna": numpy_model.device("anna", NAMES, slow)})
    with session(workers, [], lambda view: OTHERS) as moving:
        produced(moving, [[1, 2, 3]], 120)
        (move,) = moving.moves
        assert move.token < 90
        assert moving._cluster.monitor.slowness()["anna"] > 4  # 5 ms for a block that is planned with 1


def raising(view: View):
    raise ValueError("no idea")


def sleeping(view: View):
    time.sleep(60)


LACKING = (StageRecord.on("head", 0, 1), StageRecord.on("anna", 1, 5))
STRANGER = (StageRecord.on("head", 0, 1), StageRecord.on("zoe", 1, 5), StageRecord.on("head", 5, 7))


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        (raising, "raised ValueError: no idea"),
        (lambda view: 7, "returned int, neither a sequence of stages nor None"),
        (lambda view: ["anna"], "returned list, neither a sequence of stages nor None"),
        (lambda view: LACKING, "asked for what cannot be"),
        (lambda view: STRANGER, "asked for what cannot be"),
    ],
)
def test_a_function_that_is_wrong_is_told_of_once_and_ignored(cluster, hook, said):
    notes: list[str] = []
    slow = numpy_model.library(t1=lambda *each: time.sleep(0.005) or numpy_model.mix(*each))
    workers = cluster(NAMES, {"anna": numpy_model.device("anna", NAMES, slow)})
    with session(workers, notes, hook) as wrong:
        assert produced(wrong, [[1, 2, 3]], 90) == [numpy_model.greedy([1, 2, 3], 90)]
        assert not wrong.moves
    assert [note for note in notes if said in note] == notes
    assert len(notes) == 1


def test_a_function_that_sleeps_for_ever():
    notes: list[str] = []
    hook = Hook(sleeping, notes.append, deadline_s=0.1)
    assert hook.offer(view())
    time.sleep(0.15)
    assert not hook.offer(view())
    assert not hook.offer(view())
    assert notes == [
        "the balancing function has not returned within 0.1 s: it is ignored; the stages stay as they are"
    ]


def view(slowness: dict[str, float] | None = None, to_come: int = 1000, rates: Rates | None = None) -> View:
    placement = Placement.of(RECORD, rates or Rates(slowness or {}), frozenset(NAMES))
    stages = numpy_model.record("head", NAMES).stages
    return view_of(placement, stages, (SequenceView(10, to_come),), Event(EventKind.STEP), {"anna": 5})


def test_the_default_takes_work_from_a_slow_device(cluster):
    slow = numpy_model.library(t1=lambda *each: time.sleep(0.005) or numpy_model.mix(*each))
    workers = cluster(NAMES, {"anna": numpy_model.device("anna", NAMES, slow)})
    with session(workers, [], "auto") as balanced:
        assert produced(balanced, [[1, 2, 3]], 240) == [numpy_model.greedy([1, 2, 3], 240)]
        move = balanced.moves[0]
    assert (move.reason, move.device, move.computed_again) == ("slow", "anna", 0)
    assert "anna" not in {stage.lead for stage in move.stages}
    assert move.token < 220


def test_why_a_move_is_made_and_about_whom():
    moves: list[tuple] = []
    seen = view({"head": 2.0, "bert": 1.5})
    alone = replace(seen, stages=(StageRecord.on("head", 0, 7),))
    cluster = SimpleNamespace(placement=lambda: seen.placement)
    changes = SimpleNamespace(steady=False, move=lambda stages, *why: moves.append(why))
    balancer = Balancer(cluster, changes, None, Balancing("auto"), pytest.fail)
    balancer.turn(0.0)
    for saw, wanted, joined in (
        (alone, seen.stages, ["anna"]),
        (alone, seen.stages, []),  # that was the reason of the last move
        (seen, OTHERS, ["anna"]),  # runs something
    ):
        for device in joined:
            balancer.happened(EventKind.JOINED, device)
        cluster.stages = saw.stages
        balancer._begin(balancer._hook, saw, wanted)
    assert moves == [
        ("joined", "anna"),
        ("slow", "head"),
        ("slow", "bert"),
    ]  # bert: the head keeps what it has


def test_what_a_function_sees():
    rates = Rates({"anna": 3.0}, {("anna", "bert"): LinkRate(0.5, 8.0)})
    seen = view({"anna": 3.0}, rates=rates)
    assert seen.devices["anna"].slowness == 3.0
    assert seen.devices["anna"].block_s[1] == pytest.approx(3e-3)
    assert seen.devices["anna"].free_memory_bytes == 5
    assert seen.devices["bert"].blocks == tuple(range(7))
    assert seen.to_come == 1000
    several = replace(seen, sequences=(SequenceView(10, 70), SequenceView(5, 90)))
    assert several.to_come == 90  # they are produced side by side: what is saved is not counted for each
    assert replace(seen, sequences=()).to_come == 0
    assert sorted((link.source, link.destination, link.measured) for link in seen.links) == [
        (a, b, (a, b) == ("anna", "bert")) for a, b in permutations(sorted(NAMES), 2)
    ]
    (measured,) = (link for link in seen.links if link.measured)
    assert (measured.latency_s, measured.bytes_per_s) == (0.5, 8.0)
    assert seen.predict(seen.stages) == pytest.approx(Placement.of(RECORD, rates).predict(seen.stages))
    assert seen.faults(LACKING)
    assert not seen.faults(OTHERS)
    with pytest.raises(AttributeError):
        seen.stages = ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nothing", "takes auto, off, MODULE:FUNCTION or FILE.py:FUNCTION, not 'nothing'"),
        ("no_such_module_here:f", "cannot be imported: ModuleNotFoundError"),
        ("/none.py:f", "there is no file /none.py"),
        ("json:nothing", "json has no function nothing"),
    ],
)
def test_functions_that_are_not_there(text, said):
    with pytest.raises(RunError) as caught:
        load_hook(text)
    assert said in caught.value.message
    assert caught.value.code == "R125"


def test_a_function_of_a_file(tmp_path: Path):
    (tmp_path / "mine.py").write_text("def rebalance(view):\n    return view\n")
    assert load_hook(f"{tmp_path}/mine.py:rebalance")(3) == 3


def test_a_change_of_pace_is_noticed_once():
    pace = Pace()
    assert pace.changed({}) is None
    assert pace.changed({"anna": 2.0, "bert": 1.0}) is None
    assert pace.changed({"anna": 2.4, "bert": 0.8}) is None
    assert pace.changed({"anna": 6.0, "bert": 0.5}) == "anna"
    assert pace.changed({"anna": 6.0, "bert": 0.5}) == "bert"
    assert pace.changed({"anna": 6.0, "bert": 0.5}) is None
    assert pace.changed({"anna": 2.0, "bert": 0.5}) == "anna"
