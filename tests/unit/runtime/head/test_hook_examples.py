"""The balancing functions of examples/hooks: they ask for a move when they should, and for nothing else."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy_model
import pytest

from llrun.head.hook import Hook, load_hook
from llrun.head.options import Balancing
from llrun.head.session import Session
from llrun.head.view import Event, EventKind, SequenceView, View, view_of
from llrun.programs.placement import Placement, Rates
from llrun.requests.request import Request
from llrun.requests.scheduler import Scheduler
from llrun.schema import StageRecord
from llrun.wire.transport import Tcp

HOOKS = Path(__file__).parents[4] / "examples" / "hooks"
NAMES = ["head", "anna", "bert"]
RECORD = numpy_model.record("head", NAMES)
on = StageRecord.on
WITHOUT = (on("head", 0, 1), on("bert", 1, 6), on("head", 6, 7))
SLOW_HEAD = {"head": 9.0, "bert": 3.0}  # so that anna is the one to have


def view(stages=RECORD.stages, alive=NAMES, slowness=SLOW_HEAD) -> View:
    placement = Placement.of(RECORD, Rates(slowness), frozenset(alive))
    return view_of(placement, stages, (SequenceView(10, 100),), Event(EventKind.STEP), {})


def devices(stages) -> set[str]:
    return {stage.lead for stage in stages}


def at(monkeypatch: pytest.MonkeyPatch, hour: int) -> None:
    monkeypatch.setattr(time, "localtime", lambda: time.struct_time((2026, 1, 1, hour, 30, 0, 3, 1, 0)))


@pytest.fixture
def by_hour(monkeypatch: pytest.MonkeyPatch):
    function = load_hook(f"{HOOKS}/by_hour.py:rebalance")
    monkeypatch.setattr(sys.modules["llrun_hook_by_hour"], "DEVICE", "anna")
    return function


@pytest.fixture
def battery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The function for anna, whose charge `tell` writes; what was told is read at every call."""
    monkeypatch.setenv("LLRUN_PHONE", "anna")
    monkeypatch.setenv("LLRUN_BATTERY", str(tmp_path / "capacity"))
    function = load_hook(f"{HOOKS}/battery.py:rebalance")
    monkeypatch.setattr(sys.modules["llrun_hook_battery"], "EVERY_S", 0.0)
    return function


@pytest.fixture
def tell(tmp_path: Path):
    return (tmp_path / "capacity").write_text


@pytest.mark.parametrize("hour", [8, 12, 18])
def test_the_device_is_left_when_its_hours_are_over(by_hour, monkeypatch, hour):
    at(monkeypatch, hour)
    assert "anna" not in devices(by_hour(view()))
    assert not view().faults(by_hour(view()))
    assert by_hour(view(WITHOUT)) is None


@pytest.mark.parametrize("hour", [19, 23, 0, 7])
def test_the_device_is_taken_in_when_its_hours_begin(by_hour, monkeypatch, hour):
    at(monkeypatch, hour)
    assert "anna" in devices(by_hour(view(WITHOUT)))
    assert by_hour(view()) is None
    assert by_hour(view(WITHOUT, alive=["head", "bert"])) is None
    assert by_hour(view(WITHOUT, slowness={"anna": 99.0})) is None  # nothing to gain


def test_hours_of_one_day(by_hour, monkeypatch):
    module = sys.modules["llrun_hook_by_hour"]
    monkeypatch.setattr(module, "FROM", 9)
    monkeypatch.setattr(module, "UNTIL", 17)
    assert [hour for hour in range(24) if module.at_its_hours(hour)] == list(range(9, 17))


def test_a_phone_is_left_when_its_battery_is_low_and_taken_back_when_it_is_charged(battery, tell):
    for charge, before, runs in (
        ("19\n", RECORD.stages, False),
        ("20", RECORD.stages, None),
        ("49", WITHOUT, None),
        ("19", WITHOUT, None),
        ("50", WITHOUT, True),
        ("50", RECORD.stages, None),
        (json.dumps({"health": "GOOD", "percentage": 7}), RECORD.stages, False),
    ):
        tell(charge)
        asked = battery(view(before))
        assert (None if asked is None else "anna" in devices(asked)) is runs, (charge, before)
    tell("100")
    assert battery(view(WITHOUT, alive=["head", "bert"])) is None


def test_a_command_may_tell(battery):
    script = "print('{\"percentage\": 3}')"
    asking = replace(
        battery, battery=f'!{sys.executable} -c "{script}"'.replace('"percentage"', '\\"percentage\\"')
    )
    assert "anna" not in devices(asking(view()))


def test_the_battery_is_asked_once_a_minute(battery, tell, monkeypatch):
    monkeypatch.setattr(sys.modules["llrun_hook_battery"], "EVERY_S", 60.0)
    tell("3")
    assert [battery(view()) is None for _ in range(3)] == [False, True, True]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("full", "ValueError: the battery's charge is no percentage: 'full'"),
        ("", "ValueError: the battery's charge is no percentage: ''"),
        ("350", "ValueError: the battery's charge is no percentage: '350'"),
        ("NaN", "ValueError: the battery's charge is no percentage: 'NaN'"),
        ('{"plugged": true}', "ValueError: the battery's charge is no percentage"),
        (None, "FileNotFoundError"),
    ],
)
def test_a_battery_that_tells_no_charge_is_told_of_once(battery, tell, text, said):
    if text is not None:
        tell(text)
    notes: list[str] = []
    hook = Hook(battery, notes.append)
    for _ in range(3):
        assert hook.offer(view())
        while hook.busy:
            assert hook.take() is None
    hook.close()
    assert len(notes) == 1
    assert f"raised {said}" in notes[0]


def test_a_device_that_the_bundle_does_not_have_is_told_of(tell, battery):
    tell("3")
    with pytest.raises(ValueError, match="phone is not a device of this bundle"):
        replace(battery, phone="phone")(view())
    with pytest.raises(KeyError, match="laptop"):
        load_hook(f"{HOOKS}/by_hour.py:rebalance")(view())


def test_a_session_goes_on_without_the_phone(cluster, battery, tell):
    tell("5")
    notes: list[str] = []
    workers = cluster(NAMES)
    with Session(
        workers.parts["head"], Tcp(), workers.addresses, 20.0, notes.append, Balancing(battery)
    ) as moving:
        scheduler = Scheduler(moving)
        found = scheduler.run_until(scheduler.submit(Request([1, 2, 3], 120)))
        (move,) = moving.moves
    assert list(found.tokens) == numpy_model.greedy([1, 2, 3], 120)
    assert (move.reason, "anna" in devices(move.stages)) == ("hook", False)
