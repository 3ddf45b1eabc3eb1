"""The cluster live over HTTP: what it says, to whom, and that nobody pays for it who does not look."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy_model
import pytest
from served_here import Server, serving

from llrun.errors import RunError
from llrun.faces.server import live
from llrun.faces.server.cluster import Picture, ranges
from llrun.faces.server.driver import Condition
from llrun.faces.server.notes import KEPT, Notes, Told
from llrun.requests.request import Request
from llrun.requests.sampling import Sampling

NAMES = ["d0", "d1", "d2"]
GREEDY = {"prompt": "the cat sat", "temperature": 0, "max_tokens": 24}


@pytest.fixture
def served(cluster) -> Iterator[Server]:
    """A server on three devices."""
    with serving(cluster(NAMES).session()) as running:
        yield running


@contextmanager
def watching(server: Server, **settings: object) -> Iterator[Iterator[dict]]:
    """The objects of a stream, as they come."""
    with server.client() as client, client.stream("GET", "/cluster/events", **settings) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield (json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: "))


def until(objects: Iterator[dict], true) -> dict:
    """The first of which it holds."""
    return next(each for each in objects if true(each))


def test_what_each_device_holds_and_does(served):
    assert served.post("/v1/completions", GREEDY).status_code == 200
    found = served.get("/cluster").json()
    assert (found["condition"], found["head"], found["blocks"], found["epoch"]) == ("ready", "d0", 7, 1)
    assert found["model"]["name"] == "synthetic"
    assert found["model"]["chat"] is True
    assert [stage["devices"] for stage in found["stages"]] == [["d0"], ["d1"], ["d2"], ["d0"]]
    devices = {each["name"]: each for each in found["devices"]}
    assert list(devices) == NAMES
    assert [devices[name]["runs"] for name in NAMES] == [[[0, 1], [5, 7]], [[1, 3]], [[3, 5]]]
    assert devices["d1"]["spare"] == [[0, 1], [3, 7]]
    assert all(each["alive"] for each in devices.values())
    for each in devices.values():
        assert each["measured"]["compute_s"] > 0
        assert each["memory"]["peak_bytes"] > 0
        assert each["memory"]["limit_bytes"] == 1 << 30
    assert found["tokens"]["count"] == 24
    assert found["queue"] == {
        "running": 0,
        "waiting": 0,
        "slots": served.driver.read().result(5).slots,
        "moves": 0,
    }
    assert [leg["kind"] for leg in found["token"]["legs"]] == [
        "stay",
        "hop",
        "stay",
        "hop",
        "stay",
        "hop",
        "stay",
    ]
    links = {(link["from"], link["to"]): link for link in found["links"]}
    assert links["d0", "d1"]["token_bytes"] == numpy_model.WIDTH * 4
    assert links["d0", "d1"]["planned_latency_s"] == 1e-3
    json.dumps(found, allow_nan=False)


def test_a_stream_begins_at_once_and_tells_what_changes(served):
    with watching(served) as objects:
        first = next(objects)
        assert first["tokens"]["count"] == 0
        served.post("/v1/completions", GREEDY)
        assert until(objects, lambda each: each["tokens"]["count"] == 24)["token"] is not None


def test_one_look_serves_all_who_watch_and_nobody_is_asked_without_them(served, monkeypatch):
    looks = []
    read = served.driver.read
    monkeypatch.setattr(served.driver, "read", lambda: looks.append(time.monotonic()) or read())
    with watching(served) as one, watching(served) as two, watching(served) as three:
        for each in (one, two, three):
            next(each)
        served.post("/v1/completions", GREEDY)
        for each in (one, two, three):
            until(each, lambda now: now["tokens"]["count"] == 24)
    spans = [later - sooner for sooner, later in pairwise(looks)]
    assert all(span > live.EVERY_S * 0.9 for span in spans)
    time.sleep(2 * live.EVERY_S)  # who watched has gone
    count = len(looks)
    time.sleep(3 * live.EVERY_S)
    assert len(looks) == count


def test_who_goes_makes_room_for_the_next(served, monkeypatch):
    monkeypatch.setattr(live, "MOST_WATCHERS", 1)
    with watching(served) as objects:
        next(objects)
        refused = served.get("/cluster/events")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "too_many_watchers"
    end = time.monotonic() + 10
    while served.get("/cluster").status_code == 200:
        with served.client() as client, client.stream("GET", "/cluster/events") as response:
            if response.status_code == 200:
                break
        assert time.monotonic() < end
        time.sleep(0.05)


def test_readings_that_nobody_waits_for_leave_the_session_alone(served, monkeypatch):
    """Who watches goes while it is being looked."""
    for _ in range(10):
        with served.client() as client, client.stream("GET", "/cluster/events"):
            pass
    assert served.get("/health").status_code == 200
    assert served.post("/v1/completions", GREEDY).status_code == 200


def test_without_the_key_nothing_is_said():
    with serving(api_key="secret") as running:
        for path in ("/cluster", "/cluster/events"):
            assert running.get(path).status_code == 401
        with watching(running, headers={"Authorization": "Bearer secret"}) as objects:
            assert next(objects)["condition"] == "ready"


def test_a_stream_ends_with_the_session():
    with serving() as running, watching(running) as objects:
        next(objects)
        running.ending.end()
        *_, last = objects
        assert last["condition"] == "ended"


class Slow:
    """A session that takes its time, and then cannot be."""

    device = numpy_model.device("d0", ["d0"])

    def __init__(self) -> None:
        self.ready = threading.Event()

    def __enter__(self):
        self.ready.wait(20)
        raise RunError("R302", "it never came")

    def __exit__(self, *_):
        return None


def test_while_it_loads_the_plan_is_shown():
    session = Slow()
    with serving(session, wait_for="loading") as running:
        found = running.get("/cluster").json()
        session.ready.set()
    assert found["condition"] == "loading"
    assert found["token"] is found["queue"] is found["tokens"] is None
    assert found["devices"][0]["alive"] is None
    assert found["devices"][0]["memory"]["peak_bytes"] is None
    assert found["stages"][0]["blocks"] == [0, 7]


def test_a_lost_device_is_seen_and_told(cluster):
    workers = cluster(NAMES)
    notes = []
    session = workers.session(note=notes.append)
    with serving(session) as running:
        handle = running.driver.submit(Request([1, 2, 3], 200, Sampling(), lambda token: True))
        with watching(running) as objects:
            until(objects, lambda each: each["tokens"]["count"] > 3)
            session._cluster.controls.connection("d2").close()
            lost = until(objects, lambda each: each["queue"]["moves"] == 1)
        assert lost["moves"][0]["device"] == "d2"
        assert lost["moves"][0]["reason"] == "lost"
        assert lost["epoch"] == 2
        assert "d2" not in {name for stage in lost["stages"] for name in stage["devices"]}
        handle.cancel()
    assert any("device d2 was lost" in note for note in notes)


# --- without a server ---


def test_notes_keep_the_newest_and_pass_all_on():
    class Console:
        def __init__(self):
            self.said, self.far = [], []

        def note(self, text):
            self.said.append(text)

        def progress(self, done, total):
            self.far.append((done, total))

    console = Console()
    notes = Notes(console)
    for number in range(KEPT + 5):
        notes.note(f"line {number}")
    notes.progress(3, 9)
    told = notes.told()
    assert [line.text for line in told.lines] == [f"line {n}" for n in range(5, KEPT + 5)]
    assert [line.number for line in told.lines] == list(range(6, KEPT + 6))
    assert (told.done_bytes, told.total_bytes) == (3, 9)
    assert len(console.said) == KEPT + 5
    assert console.far == [(3, 9)]


def test_ranges_are_of_consecutive_numbers():
    assert ranges([5, 3, 4, 9, 9]) == [(3, 6), (9, 10)]
    assert ranges([]) == []


def test_a_device_without_a_stage_comes_last():
    record = numpy_model.record("d0", ["d0", "standby", "z"])
    found = Picture(record, False).snapshot(Condition.LOADING, None, Told())
    assert [each["name"] for each in found["devices"]] == ["d0", "z", "standby"]
    assert found["devices"][2]["standby"] is True
    assert found["devices"][2]["runs"] == []
    assert found["devices"][2]["spare"] == [(0, 7)]
