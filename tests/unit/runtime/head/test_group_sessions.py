"""Groups over loopback: the same bits by every kind of sum and in every run, and what becomes of a group at a loss."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import numpy_group
import numpy_model
import pytest
from numpy_group import Group, split
from numpy_group_worker import others_of, spares_of
from test_survival import HERE, Processes, answers, prompt

from llrun.errors import RunError
from llrun.head.mirroring import ways_of
from llrun.head.moves import MoveReason
from llrun.head.options import Balancing
from llrun.head.session import Session
from llrun.schema import AllReduceKind, StageRecord
from llrun.wire.transport import Tcp

DIRECT = AllReduceKind.DIRECT
NAMES = ["head", "anna", "bert"]


class Members(Processes):
    """Workers of a group as processes; `spares`: who holds which blocks whole, `others`: divisions that are held, as
    numpy_group_worker reads them."""

    def __init__(self, names: list[str], group: Group, spares: str = "", others: str = "") -> None:
        super().__init__(names)
        self.group, self.spares, self.others = group, spares, others

    def start(self, name: str) -> None:
        listen = self.addresses.get(name, "127.0.0.1:0")
        command = [sys.executable, str(HERE / "numpy_group_worker.py"), name, ",".join(self.names), listen]
        command += [",".join(self.group.devices), str(self.group.kind), self.spares, self.others]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout
        self.running[name] = process
        self.addresses[name] = process.stdout.readline().strip()

    def session(self, **balancing: object) -> Session:
        others = others_of(self.others, self.group)
        head = numpy_group.device("head", self.names, self.group, spares_of(self.spares), others=others)
        return Session(head, Tcp(), self.addresses, 20.0, self.notes.append, Balancing("off", **balancing))


@pytest.fixture
def members() -> Iterator[Callable[..., Members]]:
    started: list[Members] = []

    def start(names: list[str], group: Group, spares: str = "", others: str = "") -> Members:
        found = Members(names, group, spares, others)
        started.append(found)
        for name in names[1:]:
            found.start(name)
        return found

    yield start
    for found in started:
        found.end()


def parts_of(names: list[str], group: Group) -> dict[str, object]:
    return {name: numpy_group.device(name, names, group) for name in names}


def test_every_kind_gives_the_same_bits_in_every_run(cluster):
    ids, due = prompt(29, 0), None
    runs = [split(["anna", "head", "bert"], kind) for kind in AllReduceKind]
    runs += [split(["anna", "head", "bert"], AllReduceKind.STAR, 2)] * 2 + [runs[1]] * 6
    for group in runs:
        with cluster(NAMES, parts_of(NAMES, group)).session() as session:
            found = session.logits(ids)
        due = found.tobytes() if due is None else due
        assert found.tobytes() == due, group
    np.testing.assert_allclose(found, numpy_model.reference(ids), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", AllReduceKind)
def test_answers_side_by_side(cluster, kind):
    names = [*NAMES, "cora"]
    prompts = [prompt(length, length) for length in (1, 5, 9, 17, 30)]
    group = split(["bert", "anna", "cora"], kind)
    with cluster(names, parts_of(names, group)).session() as session:
        assert answers(session, prompts, 12, {}) == [numpy_model.greedy(ids, 12) for ids in prompts]
        figures = session.measure()
        assert not session.moves
        readings = session.readings
    assert all(figures[name].sent_bytes > 0 for name in names)
    assert all(readings.devices[name].compute_s for name in names)
    assert [name for name in names if readings.devices[name].runs] == [
        "head"
    ]  # others' segments are no stages


@pytest.mark.parametrize("lost", ["anna", "bert"])
def test_a_lost_member_s_blocks_go_to_who_holds_them_whole(members, lost):
    devices = members(NAMES, split(["anna", "bert"], DIRECT), "anna:1-6,bert:1-6")
    prompts = [prompt(5 + 9 * i, i) for i in range(2)]
    with devices.session() as session:
        found = answers(session, prompts, 30, {20: lambda: devices.kill(lost)})
        (move,) = session.moves
    assert found == [numpy_model.greedy(ids, 30) for ids in prompts]
    other = {"anna": "bert", "bert": "anna"}[lost]
    assert (move.reason, move.device) == (MoveReason.LOST, lost)
    assert move.stages == (
        StageRecord.on("head", 0, 1),
        StageRecord.on(other, 1, 6),
        StageRecord.on("head", 6, 7),
    )
    assert any(f"device {lost} was lost" in note and f"1-5 to {other}" in note for note in devices.notes)


@pytest.mark.parametrize("kind", AllReduceKind)
@pytest.mark.parametrize("lost", ["anna", "cora"])
def test_a_group_goes_on_without_a_lost_member_where_the_others_hold_pieces_for_that(members, kind, lost):
    names = [*NAMES, "cora"]
    group = split(["anna", "bert", "cora"], kind)
    devices = members(names, group, "", "bert,cora;anna,cora;anna,bert")
    prompts = [prompt(5 + 9 * i, i) for i in range(2)]
    with devices.session() as session:
        found = answers(session, prompts, 30, {20: lambda: devices.kill(lost)})
        (move,) = session.moves
    assert found == [numpy_model.greedy(ids, 30) for ids in prompts]
    assert (move.reason, move.device) == (MoveReason.LOST, lost)
    assert [stage.devices for stage in move.stages] == [
        ("head",), tuple(name for name in group.devices if name != lost), ("head",),
    ]  # fmt: skip
    assert move.computed_again > 0


def test_a_slow_member_is_given_less_by_the_default_and_the_text_goes_on(cluster):
    """bert takes 1 ms for each of its ten columns; 14 of 16 are anna's then. Nothing is copied."""
    group = split(["anna", "bert"], DIRECT, blocks=(1, 6))
    less = Group(("anna", "bert"), DIRECT, edges=(0, 14, 16), blocks=(1, 6), division=1)

    def slow(start: int, stop: int):
        part = numpy_group.mix_part(start, stop)
        return lambda *given: time.sleep((stop - start) * 1e-3) or part(*given)

    functions = numpy_group.library(group, less, t1_6_16=slow(6, 16), t1_14_16=slow(14, 16))
    parts = {name: numpy_group.device(name, NAMES, group, others=[less]) for name in NAMES}
    parts["bert"] = numpy_group.device("bert", NAMES, group, functions=functions, others=[less])
    devices, notes, ids = cluster(NAMES, parts), list[str](), prompt(9, 3)
    with Session(
        devices.parts["head"], Tcp(), devices.addresses, 20.0, notes.append, Balancing("auto")
    ) as session:
        found = answers(session, [ids], 200, {})
        (move,) = session.moves
    assert found == [numpy_model.greedy(ids, 200)]
    assert (move.reason, move.device, move.moved_bytes) == (MoveReason.SLOW, "bert", 0)
    assert move.stages == (StageRecord.on("head", 0, 1), less.stage(), StageRecord.on("head", 6, 7))
    assert move.computed_again > 0
    assert any("1-5 from anna+bert by 38:62 to 88:12" in note for note in notes)


@pytest.mark.parametrize("kind", AllReduceKind)
@pytest.mark.parametrize("lost", ["anna", "bert"])
def test_a_member_that_nothing_can_replace_comes_back_and_the_same_group_goes_on(members, kind, lost):
    group, ids = split(["anna", "head", "bert"], kind), prompt(11, 1)

    def again() -> None:
        devices.kill(lost)
        devices.start(lost)

    devices = members(NAMES, group)
    with devices.session(wait_s=15.0) as session:
        assert answers(session, [ids], 25, {9: again}) == [numpy_model.greedy(ids, 25)]
        (move,) = session.moves
    assert (move.reason, move.device, move.stages) == (
        MoveReason.JOINED, lost, numpy_group.stages("head", group),
    )  # fmt: skip
    assert move.computed_again >= 11 + 8
    assert any("waiting 15 s for it" in note for note in devices.notes)


def test_one_that_does_not_come_back_ends_what_is_asked_by_its_blocks(members):
    devices = members(NAMES, split(["anna", "bert"], DIRECT))
    with (
        devices.session(wait_s=0.3) as session,
        pytest.raises(RunError, match="No other device can run its blocks 1-5") as caught,
    ):
        answers(session, [prompt(5, 1)], 20, {5: lambda: devices.kill("bert")})
    assert caught.value.device == "bert"


def test_a_connection_within_a_group_is_lost_and_made_again(members):
    devices = members(NAMES, split(["head", "anna", "bert"], AllReduceKind.RING))
    ids = prompt(9, 10)
    with devices.session() as session:
        found = answers(session, [ids], 20, {8: lambda: session._links._connections["bert"].close()})
        (move,) = session.moves
    assert found == [numpy_model.greedy(ids, 20)]
    assert (move.reason, move.device, move.stages) == ("lost", "bert", session.device.record.stages)


def test_a_move_from_a_group_and_back_computes_again_what_was_cut(members):
    """Asked for while an answer goes on: nothing of it is copied, the text goes on, and the group again."""
    group = split(["anna", "bert"], DIRECT, blocks=(1, 6))
    devices = members(NAMES, group, "anna:1-6,bert:1-6,head:1-6")
    cut = numpy_group.stages("head", group)
    whole = (StageRecord.on("head", 0, 1), StageRecord.on("bert", 1, 4), StageRecord.on("head", 4, 7))
    prompts = [prompt(9, 3), prompt(14, 4)]
    with devices.session() as session:

        def move(stages: tuple[StageRecord, ...]) -> Callable[[], None]:
            def begin() -> None:
                assert not session._cluster.placement().faults(stages, session._cluster.stages)
                session._changes.move(stages, MoveReason.HOOK, None)

            return begin

        found = answers(session, prompts, 60, {20: move(whole), 70: move(cut)})
        assert [made.stages for made in session.moves] == [whole, cut]
        assert all(made.moved_bytes == 0 < made.computed_again for made in session.moves)
    assert found == [numpy_model.greedy(ids, 60) for ids in prompts]
    assert any("1-3 from anna+bert to bert, 4-5 from anna+bert to head" in note for note in devices.notes)


def test_what_a_group_computes_is_mirrored_nowhere(members):
    devices = members(NAMES, split(["anna", "bert"], DIRECT), "anna:1-6,bert:1-6")
    ids = prompt(9, 5)
    with devices.session(mirror=True) as session:
        assert ways_of(session._cluster, session._cluster.stages) == {"anna": (), "bert": ()}
        found = answers(session, [ids], 20, {8: lambda: devices.kill("anna")})
    assert found == [numpy_model.greedy(ids, 20)]
    assert devices.notes.count("--mirror copies nothing of blocks 1-5, which groups compute") == 1
