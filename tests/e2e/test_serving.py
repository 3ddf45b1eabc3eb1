"""`llrun serve --local` as a process: from loading to Ctrl-C, with a worker that is killed, and with many clients."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from shared.clients import Answer, Ask, ask_all
from shared.servers import Server, free_port, get, llrun_serve, serving

from tests.e2e import runtime_bundle
from tests.models import prompt, reference_greedy

PATH = "/v1/completions"
CLIENTS, LEAVING, TOKENS = 100, 10, 16


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runtime_bundle.make(tmp_path_factory.mktemp("serving"))


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Server]:
    port = free_port()
    with serving(llrun_serve(bundle, port, "--slots", "16"), port, bundle.parent / "errors") as running:
        running.until_healthy()
        yield running


def greedy(ids: list[int], tokens: int) -> dict:
    return {"prompt": ids, "temperature": 0, "max_tokens": tokens}


def gauge(port: int, name: str) -> float:
    lines = get(port, "/metrics")[1].splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


def test_it_loads_answers_and_ends_with_nothing_left(bundle, tmp_path):
    port = free_port()
    with serving(llrun_serve(bundle, port), port, tmp_path / "errors") as server:
        server.until_healthy()
        assert [status for status in server.health if status] == [503, 200]
        children = list(server.children())
        assert len(children) == 2
        [answer] = ask_all(port, [Ask(PATH, greedy(prompt(30), 12))])
        assert (answer.whole, answer.tokens) == (True, 12)
        cut: list[Answer] = []
        endless = Ask(PATH, greedy(prompt(8), 240))
        asking = threading.Thread(target=lambda: cut.extend(ask_all(port, [endless] * 3)))
        asking.start()
        while gauge(port, "llrun_requests_running") < 3:
            pass
        assert server.stop() == 1
        asking.join()
        assert all(answer.error["code"] == "stopped" and not answer.whole for answer in cut)
        assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []
        assert get(port, "/health")[0] == 0
    assert "Traceback" not in (tmp_path / "errors").read_text()


def requests() -> list[Ask]:
    """Of all kinds: greedy and drawn, short and long prompts, ids that others begin with too."""
    drawn = {"temperature": 1.2, "top_k": 40}
    return [
        Ask(PATH, {**greedy(prompt(3 + 7 * i % 61), TOKENS), "seed": i, **(drawn if i % 3 else {})})
        for i in range(CLIENTS)
    ]


def test_a_hundred_at_once_of_which_some_leave_are_answered_as_each_alone(server):
    asks = requests()
    alone = ask_all(server.port, asks, at_once=1)
    assert all(answer.whole and answer.tokens == TOKENS for answer in alone)
    assert len({answer.text for answer in alone}) > CLIENTS / 2
    leaving = set(range(3, CLIENTS, CLIENTS // LEAVING))
    together = [
        Ask(ask.path, {**ask.body, "max_tokens": 200}, 2 + i % 5) if i in leaving else ask
        for i, ask in enumerate(asks)
    ]
    found = ask_all(server.port, together)
    for i, (answer, expected) in enumerate(zip(found, alone, strict=True)):
        if i not in leaving:
            assert (answer.whole, answer.error, answer.reason, answer.text) == (
                True,
                None,
                expected.reason,
                expected.text,
            )
    assert len(leaving) == LEAVING
    assert not any(found[i].whole for i in leaving)
    assert gauge(server.port, "llrun_requests_waiting") == 0
    again = ask_all(server.port, asks[:16])  # as many as there are slots: every one is free
    assert [answer.text for answer in again] == [answer.text for answer in alone[:16]]
    assert gauge(server.port, "llrun_requests_running") == 0
    assert server.health == [503, 200] or server.health == [0, 503, 200]


def killed_under(server: Server, device: str, asks: list[Ask]) -> list[Answer]:
    """The answers while the worker is killed, once all of them are under way."""
    found: list[Answer] = []
    asking = threading.Thread(target=lambda: found.extend(ask_all(server.port, asks)))
    asking.start()
    while gauge(server.port, "llrun_requests_running") < len(asks):
        pass
    os.kill(server.worker(device), signal.SIGKILL)
    asking.join()
    return found


def test_where_a_worker_is_replaced_the_answers_go_on_the_same(bundle, tmp_path):
    port, prompts = free_port(), [prompt(20 + i) for i in range(4)]
    with serving(llrun_serve(bundle, port), port, tmp_path / "errors") as server:
        server.until_healthy()
        asks = [Ask(PATH, greedy(ids, 200)) for ids in prompts]
        alone = ask_all(port, asks, at_once=1)
        found = killed_under(server, "d1", asks)
        assert [(answer.whole, answer.text) for answer in found] == [(True, answer.text) for answer in alone]
        assert gauge(port, "llrun_moves_total") >= 1
        server.until_healthy()
        seen = json.loads(get(port, "/cluster")[1])
        assert {each["name"] for each in seen["devices"] if not each["alive"]} == {"d1"}
        assert any("d1" in each["text"] for each in seen["events"])  # moved from, or lost
        assert len(seen["moves"]) == seen["queue"]["moves"] >= 1
        [after] = ask_all(port, [Ask(PATH, greedy(prompts[0], 10))])
        assert alone[0].text.startswith(after.text)
        assert server.stop() == 1


def test_where_nothing_replaces_it_health_says_so_and_the_answers_end_with_the_reason(bundle, tmp_path):
    port = free_port()
    bare = bundle.parent / "bare"
    with serving(llrun_serve(bare, port, "--wait", "3"), port, tmp_path / "errors") as server:
        server.until_healthy()
        statuses: list[int] = []

        def watch() -> None:
            while server.ask_health():
                statuses.append(server.health[-1])

        watching = threading.Thread(target=watch)
        found: list[Answer] = []
        asks = [Ask(PATH, greedy(prompt(20), 220))] * 3
        asking = threading.Thread(target=lambda: found.extend(ask_all(port, asks)))
        asking.start()
        while gauge(port, "llrun_requests_running") < 3:
            pass
        os.kill(server.worker("d1"), signal.SIGKILL)
        watching.start()
        asking.join()
        watching.join()
        assert 503 in statuses
        assert all(not answer.whole and answer.error["type"] == "server_error" for answer in found)
        assert server.process.wait(20) == 1
        assert "d1" in (tmp_path / "errors").read_text()
        assert "Traceback" not in (tmp_path / "errors").read_text()


def test_tokens_are_those_of_the_model(bundle, server):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(bundle.parent / "model" / "tokenizer.json"))
    text = "def main(arguments):"
    ids = tokenizer.encode(text).ids
    [answer] = ask_all(server.port, [Ask(PATH, {"prompt": text, "temperature": 0, "max_tokens": 20})])
    expected = reference_greedy(bundle.parent / "model", ids, 20)
    assert text + answer.text == tokenizer.decode([*ids, *expected])
