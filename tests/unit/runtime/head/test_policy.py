"""The default balancing function over minutes and hours, simulated: benchmarks/balancing/policy.py in short."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy_model
import pytest
from msgspec.structs import replace as change
from shared.policy_hours import CHUNK, CONTEXT, TO_COME, Session, envelope, flapping, graph, some, steady

from llrun.head.balance import Doubt, Memory, Trial, counts, decide, rebalance, relieved, used
from llrun.head.view import Event, EventKind, SequenceView, View, view_of
from llrun.programs.placement import Placement, Rates
from llrun.schema import AllReduceKind, Shapes, StageRecord

NAMES = ["head", "anna", "bert"]
RECORD = numpy_model.record("head", NAMES)
THREE = ("head", "laptop", "pi")  # where the others have no room for all that the laptop runs
SOON = 32  # tokens
THIRD = (StageRecord.on("head", 0, 40), StageRecord.on("pi", 40, 45), StageRecord.on("head", 45, 46))


def slow_between(start: float, stop: float, times: float = 3.0):
    return lambda name, t: times if name == "laptop" and start <= t < stop else 1.0


def load(stages, name: str) -> int:
    return counts(stages)[name]


def test_noise_moves_nothing():
    """A third of it: the benchmark has whole ones."""
    hour = Session(steady, noise=0.2).run(None, 1200)
    assert len(hour.moves) <= 1
    assert len(hour.times) > 10_000
    assert hour.looks < 70  # looking takes the head's time


def test_speeds_that_wander_within_the_noise_move_nothing():
    assert len(Session(steady, noise=0.05, drift=0.2, seed=4).run(None, 300).moves) <= 1


@pytest.mark.parametrize("names", [("head", "laptop", "pi", "phone"), THREE])
def test_a_device_that_flaps_is_moved_about_less_than_once_a_minute(names):
    """Where it has to keep some blocks, it is seen to be fast again every time."""
    flaps = Session(
        lambda name, t: 3.0 if name == "laptop" and flapping(t) else 1.0,
        noise=0.1,
        names=names,
        room=1.25 if names == THREE else 1.0,
    )
    hour = flaps.run(None, 420)
    assert 2 <= len(hour.moves) <= 7
    assert hour.most_within(60) <= 2


def test_a_move_that_makes_things_worse_is_undone_and_not_tried_again_at_once():
    """The Pi seems to be much faster than planned; with more to do than before it is four times slower."""
    session = Session(steady, noise=0.1, names=THREE, room=1.25)
    before = session.stages
    session.burden = lambda name, blocks: (
        1.0 if name != "pi" else 0.3 if blocks <= load(before, name) else 4.0
    )
    hour = session.run(None, 200)
    assert [change.stages == before for change in hour.moves] == [False, True] * (len(hour.moves) // 2)
    assert 2 <= len(hour.moves) <= 4
    undone, again = hour.moves[1].at_s, [*hour.moves, None][2]
    assert undone - hour.moves[0].at_s < 10
    assert again is None or again.at_s > undone + 100


def test_a_device_that_becomes_fast_while_all_is_calm_is_used():
    session = Session(steady, noise=0.1, names=THREE, room=1.25)
    before = session.stages

    def burden(name: str, blocks: int) -> float:
        if name == "pi" and session.now < 60:
            return 0.3 if blocks <= load(before, name) else 4.0
        return 0.2 if name == "pi" else 1.0

    session.burden = burden
    hour = session.run(None, 100)
    assert [change.at_s < 60 for change in hour.moves] == [True, True, False]
    assert load(hour.moves[-1].stages, "pi") > load(before, "pi")


def test_stages_that_a_loss_forced_are_not_taken_for_a_move_that_was_wrong():
    """A device is lost after a move, so that the others have more to do and are slower; then it is back."""
    names = ("head", "laptop", "pi", "phone")
    placement = Placement(graph(), envelope(names, 1.25), "head", Shapes(CONTEXT, CHUNK))
    before = some(placement.best())
    forced = some(replace(placement, alive=frozenset(names) - {"laptop"}).best())
    rates, roomy = Rates({"head": 3.0, "pi": 3.0, "phone": 3.0}), envelope(names, 4.0)
    slow = replace(placement, rates=rates, envelope=roomy)  # for old and new blocks at once
    view = view_of(slow, forced, (SequenceView(100, TO_COME),), Event(EventKind.STEP), {})
    assert view.predict(forced) > view.predict(before)
    assert not view.faults(before)
    trial = Trial(before, THIRD, placement.predict(before), dict.fromkeys(names, 1.0))
    memory = Memory(next_s=1e9, to_come=TO_COME, fastest=dict.fromkeys(names, 1.0), trial=trial)
    for now in range(10):
        wanted, memory = decide(view, memory, float(now))
        assert wanted is None
    assert memory.trial is None


def test_a_device_that_goes_and_comes_back_is_soon_given_nothing_any_more():
    hour = Session(steady, lambda name, t: name != "laptop" or not flapping(t), noise=0.1).run(None, 300)
    gone = [change.at_s for change in hour.changes if change.forced]
    assert len(gone) == 2  # of fifteen times that it went
    assert hour.most_within(60) == len(hour.moves) == 1


def test_a_device_that_came_back_and_stays_is_given_its_work_again():
    session = Session(steady, lambda name, t: name != "laptop" or not 10 <= t < 20, noise=0.1)
    first = session._stages
    gone, back = session.run(None, 60).changes
    assert (gone.forced, load(gone.stages, "laptop")) == (True, 0)
    assert (back.forced, back.stages) == (False, first)
    assert back.at_s < 25


def test_a_slow_device_is_relieved_soon_and_given_its_work_again_when_it_is_as_fast_as_before():
    """It has to keep some blocks, and so is measured all the time."""
    session = Session(slow_between(60, 120), noise=0.1, names=THREE, room=1.25)
    first = session._stages
    hour = session.run(None, 200)
    away, back = hour.moves
    assert hour.tokens_until_move(60) <= SOON
    assert 0 < load(away.stages, "laptop") < load(first, "laptop")
    assert hour.tokens_until_move(120) <= SOON
    assert back.stages == first


def test_a_device_that_was_emptied_is_tried_again():
    """Nothing measures it then. It is still slow at the first trial, which ends at once."""
    hour = Session(slow_between(60, 130), noise=0.1).run(None, 400)
    assert ["laptop" in used(move.stages) for move in hour.moves] == [False, True, False, True]
    assert hour.tokens_until_move(60) <= SOON
    after = [b.at_s - a.at_s for a, b in pairwise(hour.moves)]
    assert after[0] >= 60  # so that it could be left at once
    assert after[1] < 5
    assert after[2] >= 120


def test_work_goes_to_a_device_that_becomes_faster_than_planned():
    speeds = Session(lambda name, t: 0.25 if name == "pi" and t > 30 else 1.0, names=THREE, room=1.25)
    hour = speeds.run(None, 60)
    assert len(hour.moves) == 1
    assert hour.tokens_until_move(30) <= SOON


# --- the rule and its memory ---------------------------------------------------------------------------------------


def view(
    slowness: dict[str, float] | None = None,
    event: Event = Event(EventKind.STEP),  # noqa: B008
    to_come: int = TO_COME,
) -> View:
    placement = Placement.of(RECORD, Rates(slowness or {}), frozenset(NAMES))
    return view_of(placement, RECORD.stages, (SequenceView(10, to_come),), event, {})


def test_the_rule_wants_what_saves_more_than_it_costs():
    slow = {"anna": 3.0}
    wanted = rebalance(view(slow))
    assert wanted is not None
    assert view(slow).predict(wanted) < view(slow).predict(RECORD.stages)
    on = StageRecord.on
    barely = replace(view({"anna": 0.7}), stages=(on("head", 0, 1), on("anna", 1, 6), on("head", 6, 7)))
    assert barely.best() == (on("head", 0, 7),)
    assert rebalance(barely) is None  # less than is worth a move
    assert rebalance(view(slow, to_come=0)) is None


@pytest.mark.parametrize(
    ("bytes_per_s", "gains", "pays"), [(1e6, False, False), (2e6, True, False), (3e6, True, True)]
)
def test_nothing_is_moved_that_hardly_pays(bytes_per_s, gains, pays):
    """The slower the disk that is read, the longer a move takes."""
    seen = view({"anna": 3.0})
    envelope = seen.placement.envelope
    slow = {name: change(each, disk_bytes_per_s=bytes_per_s) for name, each in envelope.devices.items()}
    seen = replace(seen, placement=replace(seen.placement, envelope=change(envelope, devices=slow)))
    assert (seen.best() != seen.stages) is gains
    assert (rebalance(seen) is not None) is pays


def test_deciding_is_pure_and_wants_a_move_three_times():
    memory, seen, asked = Memory(), view({"anna": 3.0}), []
    for now in (0.0, 0.25, 0.5):
        wanted, after = decide(seen, memory, now)
        assert (wanted, after) == decide(seen, memory, now)
        memory = after
        asked.append(wanted is not None)
    assert asked == [False, False, True]


def test_the_rule_is_asked_only_when_something_has_happened(monkeypatch):
    asked = []
    monkeypatch.setattr(Placement, "best", lambda self, *rest: asked.append(self) or RECORD.stages)
    memory = Memory()
    for now, event, to_come, count in (
        (0.0, Event(EventKind.STEP), 100, 1),
        (1.0, Event(EventKind.STEP), 99, 1),
        (2.0, Event(EventKind.SLOW, "anna"), 98, 2),
        (3.0, Event(EventKind.STEP), 150, 2),
        (4.0, Event(EventKind.STEP), 250, 3),  # worth more now
        (33.0, Event(EventKind.STEP), 250, 3),
        (34.0, Event(EventKind.STEP), 250, 4),
    ):
        _, memory = decide(view(event=event, to_come=to_come), memory, now)
        assert len(asked) == count, now


@pytest.mark.parametrize(
    ("times", "until"),
    [((5.0,), 5.0), ((1.0, 5.0), 125.0), ((0.0, 1.0, 5.0), 245.0), ((5.0,) * 2000, 3605.0)],
)
def test_a_doubt_lasts_twice_as_long_each_time(times, until):
    doubt = Doubt(times, 3.0)
    assert not doubt.holds(until)
    assert doubt.holds(until - 0.1) is (len(times) > 1)


def test_supposing_and_leaving_out():
    seen = view({"anna": 3.0})
    supposed = seen.supposing({"anna": 1.5})
    assert supposed.devices["anna"].block_s[1] == pytest.approx(seen.devices["anna"].block_s[1] / 2)
    assert supposed.predict(RECORD.stages) == pytest.approx(view({"anna": 1.5}).predict(RECORD.stages))
    left = seen.without("anna", "head")
    assert "anna" not in used(left.best() or ())
    assert left.faults(RECORD.stages) == ["anna is not there"]
    assert [name for name in NAMES if left.devices[name].alive] == ["head", "bert"]
    assert (seen.devices["anna"].slowness, seen.devices["anna"].alive) == (3.0, True)
    for wrong in (lambda: seen.without("zoe"), lambda: seen.supposing({"zoe": 2.0})):
        with pytest.raises(ValueError, match="zoe is not a device of this bundle; it has anna, bert, head"):
            wrong()


def test_of_a_group_a_device_has_its_share():
    """So less of the same blocks relieves it, and one that gets more is looked back at."""
    even, less = (
        (StageRecord(("head", "pi"), shares, (1, 5), 0, AllReduceKind.DIRECT),)
        for shares in ((0.5, 0.5), (0.75, 0.25))
    )
    assert counts(even) == {"head": 2.0, "pi": 2.0}
    assert counts((*less, StageRecord.on("head", 5, 7))) == {"head": 5.0, "pi": 1.0}
    assert relieved(even, less) == ["pi"]
    assert relieved(less, even) == ["head"]
