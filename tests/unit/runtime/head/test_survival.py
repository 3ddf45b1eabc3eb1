"""A device is lost in the middle of an answer: the same answer goes on without it, and with it when it comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import numpy_model
import pytest
from guessing import Oracle

from llrun.errors import RunError
from llrun.head.mirroring import links_of, ways_of
from llrun.head.options import Balancing
from llrun.head.session import Session
from llrun.requests.line import Line
from llrun.requests.request import Request
from llrun.requests.scheduler import Scheduler
from llrun.wire.transport import Tcp

HERE = Path(__file__).parents[1]


class Processes:
    """Workers as processes, each on a port that it keeps when it is started again."""

    def __init__(self, names: list[str], wire: str = "f32") -> None:
        self.names = names
        self.wire = wire
        self.running: dict[str, subprocess.Popen[str]] = {}
        self.addresses: dict[str, str] = {}
        self.notes: list[str] = []

    def start(self, name: str) -> None:
        listen = self.addresses.get(name, "127.0.0.1:0")
        process = subprocess.Popen(
            [sys.executable, str(HERE / "numpy_worker.py"), name, ",".join(self.names), listen, "", "fast", self.wire],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert process.stdout
        self.running[name] = process
        self.addresses[name] = process.stdout.readline().strip()

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        process.kill()
        process.communicate()

    def end(self) -> None:
        for name in list(self.running):
            self.kill(name)

    def session(self, **balancing: object) -> Session:
        head = numpy_model.device("head", self.names, graph=numpy_model.graph(self.wire))
        return Session(head, Tcp(), self.addresses, 20.0, self.notes.append, Balancing("off", **balancing))


@pytest.fixture
def workers() -> Iterator[Callable[..., Processes]]:
    started: list[Processes] = []

    def start(count: int, *others: str, wire: str = "f32") -> Processes:
        processes = Processes([*["head", "anna", "bert", "cora"][:count], *others], wire)
        started.append(processes)
        for name in processes.names[1:]:
            processes.start(name)
        return processes

    yield start
    for processes in started:
        processes.end()


def prompt(length: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, numpy_model.VOCABULARY, length).tolist()


def answers(
    session: Session, prompts: list[list[int]], count: int, at: dict[int, Callable[[], None]]
) -> list:
    """What each prompt gives when all are asked at once; `at`: what is done when so many tokens have come in all."""
    seen = 0

    def sink(_: int) -> bool:
        nonlocal seen
        seen += 1
        if seen in at:
            at[seen]()
        return True

    scheduler = Scheduler(session)
    handles = [scheduler.submit(Request(ids, count, sink=sink)) for ids in prompts]
    return [list(scheduler.run_until(handle).tokens) for handle in handles]


@pytest.mark.parametrize("lost", ["anna", "bert"])
@pytest.mark.parametrize("sequences", [1, 3])
def test_a_killed_worker_is_replaced_and_no_token_is_lost(workers, lost, sequences):
    devices = workers(3)
    prompts = [prompt(5 + 9 * i, i) for i in range(sequences)]
    with devices.session() as session:
        found = answers(session, prompts, 30, {20: lambda: devices.kill(lost)})
        (move,) = session.moves
    assert found == [numpy_model.greedy(ids, 30) for ids in prompts]
    assert (move.reason, move.device, move.epoch) == ("lost", lost, 2)
    assert all(stage.lead != lost for stage in move.stages)
    assert move.computed_again > 0
    assert any(f"device {lost} was lost" in note for note in devices.notes)


@pytest.mark.parametrize("lost", ["anna", "bert"])
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("at", [7, 8, 9, 10])
def test_what_was_guessed_when_a_worker_is_killed_counts_for_nothing(workers, guesses, lost, mirror, at):
    devices, ids = workers(3), prompt(6, at)
    expected = numpy_model.greedy(ids, 60)
    guesses(Oracle(expected, len(ids), 0.2, at))
    with devices.session(mirror=mirror) as session:
        found = answers(session, [ids], 60, {at: lambda: devices.kill(lost)})
        assert len(session.moves) == 1
    assert found == [expected]


@pytest.mark.parametrize("wire", ["f16", "q4"])
def test_text_does_not_depend_on_where_blocks_run_in_any_format(workers, wire):
    """Alone on the head nothing travels; of three devices one is killed, and stages are others from then on."""
    prompts = [prompt(5 + 9 * i, i) for i in range(3)]
    with workers(1, wire=wire).session() as session:
        alone = answers(session, prompts, 40, {})
    devices = workers(3, wire=wire)
    with devices.session() as session:
        found = answers(session, prompts, 40, {30: lambda: devices.kill("bert")})
        (move,) = session.moves
    assert found == alone
    assert move.computed_again > 0
    if wire == "q4":  # else nothing was rounded, and there is nothing to be seen here
        assert alone != [numpy_model.greedy(ids, 40) for ids in prompts]


def test_a_device_on_standby_takes_a_lost_ones_blocks(workers):
    devices = workers(3, "standby")
    ids = prompt(9, 3)
    with devices.session() as session:
        session._cluster.barred.update({name: {1, 2} for name in ("head", "bert")})
        until = time.monotonic() + 15
        while "device standby takes part" not in devices.notes and time.monotonic() < until:
            answers(session, [prompt(3, 7)], 2, {})
        assert answers(session, [ids], 10, {}) == [numpy_model.greedy(ids, 10)]
        figures = session.measure()
        assert (figures["standby"].compute_s, figures["anna"].compute_s > 0) == (0.0, True)
        assert answers(session, [ids], 30, {8: lambda: devices.kill("anna")}) == [numpy_model.greedy(ids, 30)]
        (move,) = session.moves
    assert {b for stage in move.stages if stage.lead == "standby" for b in range(*stage.blocks)} >= {1, 2}
    assert "standby" not in {stage.lead for stage in numpy_model.record("head", devices.names).stages}


def test_a_worker_killed_while_a_long_prompt_is_computed(workers):
    devices = workers(3)
    prompts = [prompt(4, 1), prompt(200, 2)]
    with devices.session() as session:
        found = answers(session, prompts, 12, {2: lambda: devices.kill("bert")})
    assert found == [numpy_model.greedy(ids, 12) for ids in prompts]


def test_the_one_that_took_over_is_lost_too(workers):
    devices = workers(4)
    ids = prompt(9, 4)
    with devices.session() as session:
        session._cluster.barred["head"] = {2}  # so that a worker has to take it

        def kill_again() -> None:
            devices.kill(next(s.lead for s in session.moves[-1].stages if 2 in range(*s.blocks)))

        found = answers(session, [ids], 30, {8: lambda: devices.kill("anna"), 15: kill_again})
        assert len(session.moves) == 2
        assert len({move.device for move in session.moves}) == 2
    assert found == [numpy_model.greedy(ids, 30)], devices.notes


def test_two_workers_at_once(workers):
    devices = workers(4)
    ids = prompt(9, 5)

    def both() -> None:
        devices.kill("anna")
        devices.kill("cora")

    with devices.session() as session:
        assert answers(session, [ids], 30, {8: both}) == [numpy_model.greedy(ids, 30)]


def test_a_frozen_worker_is_replaced_and_comes_back(workers):
    devices = workers(3)
    ids, process = prompt(9, 6), devices.running["anna"]
    with devices.session() as session:
        began = time.monotonic()
        found = answers(session, [ids], 20, {8: lambda: os.kill(process.pid, signal.SIGSTOP)})
        assert time.monotonic() - began < 15
        assert found == [numpy_model.greedy(ids, 20)]
        os.kill(process.pid, signal.SIGCONT)
        until = time.monotonic() + 15
        while not any("anna takes part" in note for note in devices.notes) and time.monotonic() < until:
            answers(session, [prompt(3, 7)], 2, {})
            time.sleep(0.05)
        assert any("anna takes part" in note for note in devices.notes)
        assert answers(session, [ids], 10, {}) == [numpy_model.greedy(ids, 10)]


def test_short_sleep_is_no_death(workers):
    devices = workers(3)
    ids, process = prompt(9, 8), devices.running["bert"]

    def nap() -> None:
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(0.5)
        os.kill(process.pid, signal.SIGCONT)

    with devices.session() as session:
        assert answers(session, [ids], 20, {8: nap}) == [numpy_model.greedy(ids, 20)]
        assert not session.moves


def test_a_connection_alone_is_lost_and_made_again(workers):
    devices = workers(3)
    ids = prompt(9, 10)
    with devices.session() as session:
        devices.notes.clear()  # on a busy machine a worker that still loads is waited for, which is told
        found = answers(session, [ids], 20, {8: lambda: session._links._connections["bert"].close()})
        (move,) = session.moves
    assert found == [numpy_model.greedy(ids, 20)]
    assert (move.reason, move.device, move.stages) == ("lost", "bert", session.device.record.stages)
    assert devices.notes == ["device bert lost a connection, which is made again; the answer goes on"]


def test_the_session_after_a_loss_serves_on(workers):
    """The workers that are left have their own blocks again."""
    devices = workers(3)
    ids = prompt(9, 9)
    with devices.session() as session:
        answers(session, [ids], 20, {8: lambda: devices.kill("anna")})
    devices.start("anna")
    with devices.session() as session:
        assert answers(session, [ids], 20, {}) == [numpy_model.greedy(ids, 20)]
        assert not session.moves


@pytest.mark.parametrize("at", [0, 1, 5])
def test_what_earlier_requests_left_is_right_or_given_up_when_a_worker_is_killed(workers, at):
    """Killed before the request that goes on from it is open, and while it runs."""
    devices, ids = workers(3), prompt(40, 1)

    def sink(_: int) -> bool:
        if len(handle.tokens) == at:
            devices.kill("anna")
        return True

    with devices.session() as session:
        scheduler = Scheduler(session, kept=2 * numpy_model.CONTEXT)
        scheduler.run_until(scheduler.submit(Request(ids, 4)))
        scheduler.run_until(scheduler.submit(Request(prompt(30, 2), 4)))
        if not at:
            devices.kill("anna")
        handle = scheduler.submit(Request([*ids, 7], 30, sink=sink))
        assert list(scheduler.run_until(handle).tokens) == numpy_model.greedy([*ids, 7], 30)
        assert handle.reused == 40 or not at
        assert len(session.moves) == 1
        assert [len(each.ids) for each in session.parked.values()] == [70]  # the other is not there any more
        again = scheduler.submit(Request([*ids, 7, 8], 4))
        assert list(scheduler.run_until(again).tokens) == numpy_model.greedy([*ids, 7, 8], 4)
        assert again.reused == 41


def test_a_later_turn_goes_on_when_one_chunk_computes_all_again_that_was_lost(workers):
    """That chunk begins before the turn does: its logits are still the turn's."""
    devices, line, told = workers(3), Line(kept=True), []

    def sink(token: int) -> bool:
        told.append(token)
        if len(told) == 2:
            devices.kill("bert")  # the last one with a cache
        return True

    with devices.session() as session:
        scheduler = Scheduler(session)
        first = scheduler.run_until(scheduler.submit(Request(prompt(2, 1), 1), line)).tokens
        second = scheduler.submit(Request([7], 20, sink=sink), line)
        found = list(scheduler.run_until(second).tokens)
        assert len(session.moves) == 1
    assert found == told == numpy_model.greedy([*prompt(2, 1), *first, 7], 20)


def held(process: int) -> tuple[int, int]:
    """Open files and threads."""
    return len(os.listdir(f"/proc/{process}/fd")), len(os.listdir(f"/proc/{process}/task"))


def test_losses_leave_nothing_behind(workers):
    """In short what benchmarks/balancing/soak.py does at length."""
    devices = workers(4)
    ids, counts = prompt(9, 12), []
    with devices.session() as session:
        session._cluster.barred["head"] = {2}  # so that a worker always runs something
        for _ in range(6):
            lost = next(stage.lead for stage in session._cluster.stages if stage.lead != "head")
            found = answers(session, [ids], 12, {6: lambda lost=lost: devices.kill(lost)})
            assert found == [numpy_model.greedy(ids, 12)]
            devices.start(lost)
            until = time.monotonic() + 15
            while lost not in session._cluster.alive and time.monotonic() < until:
                answers(session, [ids], 1, {})
            counts.append([held(os.getpid()), *(held(each.pid) for each in devices.running.values())])
        assert len(session.moves) == 6
    for then, now in zip(counts[1], counts[-1], strict=True):
        assert max(b - a for a, b in zip(then, now, strict=True)) <= 3  # connections of other stages


def test_nothing_can_take_its_place(workers):
    devices = workers(3)
    with devices.session(wait_s=0.5) as session:
        session._cluster.barred.update({name: {2} for name in ("head", "bert")})
        began = 0.0

        def kill() -> None:
            nonlocal began
            began = time.monotonic()
            devices.kill("anna")

        with pytest.raises(
            RunError, match=r"device anna was lost: .* No other device can run its blocks? "
        ) as caught:
            answers(session, [prompt(5, 1)], 20, {5: kill})
        assert caught.value.device == "anna"
        assert time.monotonic() - began < 5


def test_it_comes_back_while_it_is_waited_for(workers):
    devices = workers(3)
    ids = prompt(5, 1)

    def again() -> None:
        devices.kill("anna")
        devices.start("anna")

    with devices.session(wait_s=15.0) as session:
        session._cluster.barred.update({name: {2} for name in ("head", "bert")})
        assert answers(session, [ids], 20, {5: again}) == [numpy_model.greedy(ids, 20)]
        assert [move.reason for move in session.moves] == ["joined"]


def test_a_mirrored_loss_computes_next_to_nothing_again(workers):
    devices = workers(3)
    prompts = [prompt(5 + 40 * i, i) for i in range(3)]

    def kill() -> None:
        time.sleep(0.2)  # what was computed is on its way
        devices.kill("anna")

    with devices.session(mirror=True) as session:
        assert not session.moves
        found = answers(session, prompts, 40, {60: kill})
        (move,) = session.moves
    assert found == [numpy_model.greedy(ids, 40) for ids in prompts]
    assert (move.reason, move.device) == ("lost", "anna")
    assert move.computed_again <= 3 * len(prompts)


def test_mirrors_go_to_who_would_take_over_and_where_nobody_has_room_nowhere(workers):
    devices = workers(3)
    with devices.session() as session:
        cluster = session._cluster
        (way,) = ways_of(cluster, cluster.stages)["anna"]
        assert (way.destination, way.blocks) == ("head", (1, 2))
        assert links_of({"anna": (way,)}) == {"anna": {"head"}, "head": {"anna"}}
        small = {
            name: msgspec.structs.replace(device, memory_bytes=(4 << 20) + (1 << 18))
            for name, device in cluster.record.envelope.devices.items()
        }
        envelope = msgspec.structs.replace(cluster.record.envelope, devices=small)
        cluster.record = msgspec.structs.replace(cluster.record, envelope=envelope)
        assert ways_of(cluster, cluster.stages)["anna"] == ()
