"""Devices that come while a session goes on: they take part at once, and run blocks when there is a reason."""

from __future__ import annotations

import time

import msgspec
import numpy_model

from llrun.head import membership
from llrun.head.moves import in_words
from llrun.head.options import Balancing
from llrun.head.session import Session
from llrun.head.view import EventKind, View
from llrun.requests.request import Request
from llrun.requests.scheduler import Scheduler
from llrun.wire.transport import Tcp

IDS = [3, 1, 4]
ROUNDS = 20  # of requests until something has happened


def slow(seconds: float):
    return numpy_model.library(t1=lambda *each: time.sleep(seconds) or numpy_model.mix(*each))


def free_address() -> str:
    listener = Tcp().listen("127.0.0.1:0")
    listener.close()
    return listener.address


def answer(session: Session, count: int, at: int = 0, then=lambda: None) -> list[int]:
    """What a request gives; `then` is done when `at` tokens have come."""
    seen = 0

    def sink(_: int) -> bool:
        nonlocal seen
        seen += 1
        if seen == at:
            then()
        return True

    scheduler = Scheduler(session)
    return list(scheduler.run_until(scheduler.submit(Request(IDS, count, sink=sink))).tokens)


def test_a_device_on_standby_that_comes_is_given_blocks_when_it_is_faster(cluster):
    names, notes = ["head", "anna", "bert", "standby"], []
    envelope = numpy_model.envelope(names)
    quick = [msgspec.structs.replace(block, decode_s=1e-4) for block in envelope.devices["standby"].blocks]
    envelope.devices["standby"] = msgspec.structs.replace(envelope.devices["standby"], blocks=tuple(quick))
    parts = {name: numpy_model.device(name, names, slow(0.004)) for name in ("anna", "bert")}
    parts["head"] = numpy_model.device("head", names, envelope=envelope)
    workers = cluster(names[:3], parts, plan=names)
    address = workers.addresses["standby"] = free_address()
    with Session(parts["head"], Tcp(), workers.addresses, 20.0, notes.append, Balancing()) as session:
        session._cluster.barred["head"] = {1, 2, 3, 4}
        assert answer(session, 30, 5, lambda: workers.start("standby", address)) == numpy_model.greedy(
            IDS, 30
        )
        for _ in range(ROUNDS):
            if session.moves:
                break
            assert answer(session, 200) == numpy_model.greedy(IDS, 200)
        move = session.moves[0]
    assert (move.reason, move.device, move.computed_again) == ("joined", "standby", 0)
    assert "standby" in {stage.lead for stage in move.stages}
    assert notes[0].startswith(f"going on without device standby at {address}: connection refused")
    assert notes[1:3] == ["device standby takes part", in_words(move, parts["head"].record.stages)]
    assert "as device standby takes part" in notes[2]


def test_a_session_begins_without_a_device_that_others_can_do_without_and_uses_it_once_it_listens(
    cluster, monkeypatch
):
    monkeypatch.setattr(membership, "START_S", 0.5)
    names, notes, told = ["head", "anna", "bert"], [], []
    workers = cluster(names[:2], plan=names)
    address = workers.addresses["bert"] = free_address()
    planned = workers.parts["head"].record.stages

    def as_planned(view: View):
        if view.event.kind in (EventKind.JOINED, EventKind.LOST):
            told.append((view.event.kind, view.event.device))
        return planned if view.devices["bert"].alive else None

    with Session(
        workers.parts["head"], Tcp(), workers.addresses, 20.0, notes.append, Balancing(as_planned)
    ) as session:
        assert "bert" not in {stage.lead for stage in session.moves[-1].stages}
        assert answer(session, 30, 5, lambda: workers.start("bert", address)) == numpy_model.greedy(IDS, 30)
        for _ in range(ROUNDS):
            if len(session.moves) > 1:
                break
            assert answer(session, 60) == numpy_model.greedy(IDS, 60)
        without, with_it = session.moves
    assert (without.reason, without.device, with_it.reason, with_it.stages) == (
        "lost",
        "bert",
        "hook",
        planned,
    )
    assert told == [(EventKind.JOINED, "bert")]  # who was there from the start has not joined
    assert "device bert takes part" in notes
