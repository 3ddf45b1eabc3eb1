"""What the head keeps of devices and links, and how `--json` shows it."""

from __future__ import annotations

import json
from contextlib import contextmanager

import numpy_model
import pytest

from llrun.device.slice import StoredSlice
from llrun.faces import answering
from llrun.faces.console import Console
from llrun.faces.printer import Wanted
from llrun.faces.where import Where
from llrun.head.monitor import LONG, RECENT, Monitor
from llrun.head.options import Balancing
from llrun.head.readings import DeviceReading, LinkReading, Readings, RunReading
from llrun.programs.placement import LinkRate
from llrun.requests.sampling import Sampling
from llrun.schema import StageRecord
from llrun.wire.messages import Figures, LinkFigures, Measured, StepDone
from llrun.wire.transport import Tcp

NAMES = ["head", "anna", "bert", "cora"]
STAGES = (StageRecord.on("head", 0, 2), StageRecord.on("pi", 2, 6), StageRecord.on("head", 6, 7))
PLANNED = {("head", "pi"): LinkRate(1e-3, 1e6), ("pi", "head"): LinkRate(2e-3, 2e6)}


def monitor() -> Monitor:
    return Monitor(STAGES, {"head": 1e-3, "pi": 2e-3}, PLANNED)


def step(*runs: float, wait_s: float = 0.0, sequence: int = 0, position: int = 0) -> StepDone:
    return StepDone(sequence, position, sum(runs), wait_s, 100, 0.5, runs)


def test_a_token_s_seconds_are_medians_by_block_run():
    kept = monitor()
    for first, last in ((1e-3, 5e-3), (3e-3, 1e-3), (90.0, 80.0)):
        kept.steps("head", [step(first, last, wait_s=first)])
    (reading,) = kept.readings().devices.values()
    assert reading == DeviceReading(
        tokens=3,
        compute_s=pytest.approx(6e-3),
        wait_s=3e-3,
        send_s=0.5,
        runs=(RunReading((0, 2), 3e-3), RunReading((6, 7), 5e-3)),
        slowness=None,  # three tokens say nothing yet
        free_memory_bytes=None,
    )


def test_one_pass_of_several_sequences_is_one_token():
    kept = monitor()
    kept.steps("head", [step(1.0, 2.0, sequence=i, wait_s=0.25) for i in range(4)])
    reading = kept.readings().devices["head"]
    assert (reading.tokens, reading.compute_s, reading.wait_s, reading.send_s) == (1, 12.0, 1.0, 2.0)
    assert [each.compute_s for each in reading.runs] == [4.0, 8.0]


def test_medians_run_and_no_more_is_kept_than_they_need():
    kept = monitor()
    for seconds in [*[1.0] * 1000, *[2.0] * (LONG // 2 - 1)]:
        kept.steps("pi", [step(seconds)])
    assert kept.readings().devices["pi"].compute_s == 1.0
    for _ in range(2):
        kept.steps("pi", [step(2.0)])
    assert kept.readings().devices["pi"].compute_s == 2.0
    samples = kept.devices["pi"]
    assert {len(each.values) for each in (samples.compute, samples.wait, samples.send, *samples.runs)} == {
        LONG
    }
    for i in range(1000):
        kept.measured("pi", Measured(Figures(), (LinkFigures("head", 1e-3, float(i + 1)),), 7))
    assert kept.readings().links == (LinkReading("pi", "head", 1e-3, 996.5),)


def test_slowness_is_beside_the_plan_and_stays_when_other_stages_run():
    kept = monitor()
    for _ in range(RECENT):
        kept.steps("pi", [step(8e-3)])
    assert kept.readings().devices["pi"].slowness == pytest.approx(4.0)
    kept.plan(
        (StageRecord.on("head", 0, 5), StageRecord.on("pi", 5, 6), StageRecord.on("head", 6, 7)), {"pi": 5e-4}
    )
    reading = kept.readings().devices["pi"]
    assert (reading.tokens, reading.compute_s, reading.runs) == (0, None, ())
    assert reading.slowness == pytest.approx(4.0)
    kept.steps("pi", [step(3e-3)])
    assert kept.readings().devices["pi"].runs == (RunReading((5, 6), 3e-3),)


def test_a_program_that_is_cut_otherwise_than_the_stages_is_not_told_by_run():
    kept = monitor()
    kept.steps("pi", [step(1.0, 2.0)])
    reading = kept.readings().devices["pi"]
    assert (reading.compute_s, reading.runs) == (3.0, ())


def test_links_are_told_as_their_traffic_shows_them_and_reckoned_with_as_planned_else():
    kept = monitor()
    stranger = LinkFigures("old", 1e-4, 0.0)
    kept.measured("head", Measured(Figures(), (LinkFigures("pi", 5e-3, 0.0), stranger), 123))
    kept.measured("pi", Measured(Figures(), (LinkFigures("head", 0.0, 0.0),), 0))
    assert kept.readings().links == (
        LinkReading("head", "old", 1e-4, None),
        LinkReading("head", "pi", 5e-3, None),
        LinkReading("pi", "head", None, None),
    )
    assert kept.rates().links == {("head", "pi"): LinkRate(5e-3, 1e6), ("pi", "head"): LinkRate(2e-3, 2e6)}
    assert {name: each.free_memory_bytes for name, each in kept.readings().devices.items()} == {
        "head": 123,
        "pi": None,  # its system does not say
    }
    for rate in (3e6, 9e6, 4e6):
        kept.measured("head", Measured(Figures(), (LinkFigures("pi", 5e-3, rate),), 99))
    assert kept.rates().links["head", "pi"] == LinkRate(5e-3, 4e6)
    kept.forget("pi")
    assert kept.readings() == Readings(
        {"head": DeviceReading(0, None, None, None, (), None, 99)}, (LinkReading("head", "old", 1e-4, None),)
    )


def test_json_tells_what_was_measured(cluster, tmp_path, monkeypatch, capsys):
    workers = cluster(NAMES)

    @contextmanager
    def on_loopback(*_: object):
        with workers.session() as session:
            yield session

    monkeypatch.setattr(answering, "session_on", on_loopback)
    stored = StoredSlice(tmp_path, "head", None, workers.parts["head"].record)
    where, wanted = Where(False, {}, True, 20.0, Tcp()), Wanted(40, Sampling(), (), speculate=False)
    given = answering.Given((), ([1, 2, 3], [4, 5]))
    answering.answer_all(stored, where, wanted, given, True, Console(quiet=True), Balancing("off"), None)
    found = json.loads(capsys.readouterr().out)
    assert [one["tokens"] for one in found["results"]] == [
        numpy_model.greedy(list(ids), 40) for ids in given.ids
    ]
    assert all("measured" not in one for one in found["results"])
    devices, links = found["measured"]["devices"], found["measured"]["links"]
    assert sorted(devices) == sorted(NAMES)
    for device in devices.values():
        assert device["tokens"] == 78
        assert device["compute_s"] > 0
        assert device["wait_s"] > 0
        assert device["send_s"] > 0
        assert 0 < device["slowness"] < 100
        assert device["free_memory_bytes"] > 1 << 20
    assert [run["blocks"] for run in devices["head"]["runs"]] == [[0, 1], [6, 7]]
    assert sum(run["compute_s"] for run in devices["head"]["runs"]) == pytest.approx(
        devices["head"]["compute_s"], rel=0.5
    )
    ways = [("head", "anna"), ("anna", "bert"), ("bert", "cora"), ("cora", "head")]
    assert {(link["from"], link["to"]) for link in links} == {*ways, *((b, a) for a, b in ways)}
    assert all(0 < link["latency_s"] < 1 for link in links)
    assert all(link.keys() == {"from", "to", "latency_s", "bytes_per_s"} for link in links)
