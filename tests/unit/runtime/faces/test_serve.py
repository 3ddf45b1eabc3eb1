"""Requests over HTTP: whose text they get, how they end, and what they leave behind."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy_model
import pytest
import served_here
from served_here import serving, text_of

from llrun.errors import INTERNAL, RunError

PROMPT = "the cat sat"
IDS = [ord(letter) - 32 for letter in PROMPT]
GREEDY = {"prompt": PROMPT, "temperature": 0, "max_tokens": 24}
MESSAGES = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def server():
    with serving() as running:
        yield running


def events(text: str) -> list[object]:
    """The data of a stream's events; `[DONE]` as it is."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def streamed(server, path: str, body: dict) -> list[object]:
    done = server.post(path, {**body, "stream": True})
    assert done.status_code == 200
    assert done.headers["content-type"] == "text/event-stream; charset=utf-8"
    found = events(done.text)
    assert found[-1] == "[DONE]"
    return found[:-1]


def greedy(ids: list[int], count: int) -> str:
    return text_of(numpy_model.greedy(ids, count))


def test_a_completion_is_what_the_model_says(server):
    done = server.post("/v1/completions", GREEDY)
    assert done.status_code == 200
    body = done.json()
    assert body["object"] == "text_completion"
    assert body["choices"] == [
        {"index": 0, "finish_reason": "length", "logprobs": None, "text": greedy(IDS, 24)}
    ]
    assert body["usage"] == {
        "prompt_tokens": 11,
        "completion_tokens": 24,
        "total_tokens": 35,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_a_stream_is_the_same_text_in_pieces(server):
    body = {**GREEDY, "stream_options": {"include_usage": True}}
    found = streamed(server, "/v1/completions", body)
    assert "".join(event["choices"][0]["text"] for event in found[:-1]) == greedy(IDS, 24)
    assert len(found) > 20
    assert found[-2]["choices"][0]["finish_reason"] == "length"
    assert found[-1]["choices"] == []
    assert found[-1]["usage"]["completion_tokens"] == 24
    assert len({event["id"] for event in found}) == 1


def test_a_chat_is_rendered_with_the_template(server):
    ids = served_here.tokenizer().encode("user: hello\nassistant: ")
    choice = server.post("/v1/chat/completions", MESSAGES).json()["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": greedy(ids, 12), "refusal": None}
    found = streamed(server, "/v1/chat/completions", MESSAGES)
    assert found[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    deltas = [event["choices"][0]["delta"].get("content", "") for event in found]
    assert "".join(deltas) == greedy(ids, 12)
    assert found[-1]["choices"][0] == {"index": 0, "finish_reason": "length", "logprobs": None, "delta": {}}


def test_the_token_that_a_template_writes_after_an_answer_ends_one():
    """No file of the model names it."""
    ids = served_here.tokenizer().encode("user: hello\nassistant: ")
    said = greedy(ids, 12)
    special = next(letter for n, letter in enumerate(said) if n > 2 and letter not in said[:n])
    closing = f"{{{{ m.content }}}}{{{{ {special!r} if m.role == 'assistant' }}}}"
    template = served_here.TEMPLATE.replace("{{ m.content }}", closing)
    with serving(template=template, special=special) as running:
        choice = running.post("/v1/chat/completions", MESSAGES).json()["choices"][0]
        assert choice["message"]["content"] == said.partition(special)[0]
        assert choice["finish_reason"] == "stop"
        found = streamed(running, "/v1/chat/completions", MESSAGES)
        assert (
            "".join(e["choices"][0]["delta"].get("content", "") for e in found) == said.partition(special)[0]
        )
        prompt = {"prompt": list(ids), "temperature": 0, "max_tokens": 12}
        plain = running.post("/v1/completions", prompt).json()["choices"][0]
        assert (plain["finish_reason"], running.driver.condition) == ("length", "ready")


def test_who_no_longer_waits_for_figures_does_no_harm(server):
    for _ in range(20):
        server.driver.read().cancel()
    assert server.load() == (0, 0)
    assert server.get("/health").status_code == 200


def test_without_tokens_asked_for_a_chat_fills_the_context(server):
    body = {"messages": MESSAGES["messages"], "temperature": 0}
    usage = server.post("/v1/chat/completions", body).json()["usage"]
    assert usage["total_tokens"] == numpy_model.CONTEXT


def test_it_ends_before_a_stop_string_that_lies_over_tokens(server):
    whole = greedy(IDS, 24)
    stop = whole[9:13]
    body = {**GREEDY, "stop": stop}
    choice = server.post("/v1/completions", body).json()["choices"][0]
    assert choice["text"] == whole[: whole.index(stop)]
    assert choice["finish_reason"] == "stop"
    found = streamed(server, "/v1/completions", body)
    assert "".join(event["choices"][0]["text"] for event in found) == whole[: whole.index(stop)]
    never = server.post("/v1/completions", {**GREEDY, "stop": whole[-2:] + "never"}).json()["choices"][0]
    assert (never["text"], never["finish_reason"]) == (whole, "length")


def test_choices_have_seeds_of_their_own_and_are_the_same_again(server):
    body = {"prompt": [PROMPT, "a dog"], "n": 2, "seed": 7, "max_tokens": 12}
    texts = [each["text"] for each in server.post("/v1/completions", body).json()["choices"]]
    assert len(set(texts)) == 4
    assert texts == [each["text"] for each in server.post("/v1/completions", body).json()["choices"]]
    alone = server.post("/v1/completions", {**body, "prompt": "a dog", "n": 1, "seed": 8}).json()
    assert alone["choices"][0]["text"] == texts[3]
    found = streamed(server, "/v1/completions", body)
    pieces = ["", "", "", ""]
    for event in found:
        pieces[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert pieces == texts


def test_probabilities_are_the_models_own(server):
    row = numpy_model.reference(IDS)[-1].astype(np.float64)
    wanted = row - row.max() - np.log(np.exp(row - row.max()).sum())
    body = {**GREEDY, "max_tokens": 2, "logprobs": 3, "temperature": 0.5, "top_k": 1}
    told = server.post("/v1/completions", body).json()["choices"][0]["logprobs"]
    best = int(np.argmax(row))
    assert told["tokens"][0] == text_of([best])
    assert told["token_logprobs"][0] == pytest.approx(wanted[best], abs=1e-4)
    assert len(told["top_logprobs"]) == 2
    assert list(told["top_logprobs"][0].values()) == pytest.approx(sorted(wanted)[::-1][:3], abs=1e-4)
    chat = server.post("/v1/chat/completions", {**MESSAGES, "logprobs": True, "top_logprobs": 2}).json()
    content = chat["choices"][0]["logprobs"]["content"]
    assert "".join(each["token"] for each in content) == chat["choices"][0]["message"]["content"]
    assert all(bytes(each["bytes"]).decode() == each["token"] for each in content)
    assert all(each["top_logprobs"][0]["token"] == each["token"] for each in content)


def test_penalties_keep_tokens_from_coming_again(server):
    usual = server.post("/v1/completions", {**GREEDY, "max_tokens": 60}).json()["choices"][0]["text"]
    body = {**GREEDY, "max_tokens": 60, "frequency_penalty": 2, "presence_penalty": 2}
    penalised = server.post("/v1/completions", body).json()["choices"][0]["text"]
    assert len(set(penalised)) > len(set(usual))


def test_many_at_once_get_the_text_that_each_gets_alone(server):
    prompts = [f"{i} times {i * i} is" for i in range(40)]
    bodies = [{"prompt": text, "max_tokens": 5 + i % 17, "seed": i} for i, text in enumerate(prompts)]
    alone = [server.post("/v1/completions", body).json()["choices"][0]["text"] for body in bodies]

    def ask(index: int) -> str:
        if index % 2:
            return server.post("/v1/completions", bodies[index]).json()["choices"][0]["text"]
        found = streamed(server, "/v1/completions", bodies[index])
        return "".join(event["choices"][0]["text"] for event in found)

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(ask, range(40))) == alone


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({**GREEDY, "max_tokens": 10_000}, 400, "context_length_exceeded"),
        ({**GREEDY, "prompt": "x" * 300}, 400, "context_length_exceeded"),
        ({**GREEDY, "prompt": ""}, 400, "R103"),
        ({**GREEDY, "prompt": [5, 97]}, 400, "R104"),
        ({**GREEDY, "model": "gpt-5"}, 404, "model_not_found"),
        ({**GREEDY, "tools": []}, 400, "unknown_parameter"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused_has_a_status_and_an_error_object(server, body, status, code, stream):
    done = server.post("/v1/completions", {**body, "stream": stream})
    error = done.json()["error"]
    assert (done.status_code, error["type"], error["code"]) == (status, "invalid_request_error", code)
    assert error["message"]
    assert server.load() == (0, 0)


def test_bodies_that_are_none(server):
    with server.client() as client:

        def post(data: bytes, kind: str = "application/json"):
            return client.post("/v1/completions", content=data, headers={"content-type": kind})

        assert post(b"{nonsense").status_code == 400
        assert post(b"{}", "text/plain").status_code == 415
        assert post(b" " * (9 << 20)).status_code == 413
        for done in (client.get("/v1/nothing"), client.get("/v1/completions")):
            assert done.status_code in (404, 405)
            assert done.json()["error"]["type"] == "invalid_request_error"


def test_models_health_and_metrics(server):
    assert server.get("/health").json() == {"status": "ok"}
    listed = server.get("/v1/models").json()
    assert [each["id"] for each in listed["data"]] == ["synthetic"]
    assert server.get("/v1/models/synthetic").json() == listed["data"][0]
    assert server.get("/v1/models/other").status_code == 404
    server.post("/v1/completions", GREEDY)
    done = server.get("/metrics")
    assert done.headers["content-type"].startswith("text/plain; version=0.0.4")
    figures = dict(line.rsplit(" ", 1) for line in done.text.splitlines() if not line.startswith("#"))
    assert float(figures["llrun_ready"]) == 1
    assert float(figures['llrun_device_compute_seconds_total{device="d0"}']) > 0
    assert float(figures['llrun_device_peak_memory_bytes{device="d0"}']) > 1 << 20
    assert "access-control-allow-origin" not in done.headers


def test_a_bundle_without_a_template_says_so():
    with serving(template=None) as server:
        done = server.post("/v1/chat/completions", MESSAGES)
        assert (done.status_code, done.json()["error"]["code"]) == (400, "no_chat_template")


def test_with_a_key_only_those_who_have_it_are_answered():
    with serving(api_key="s3cret") as server:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "s3cret"}):
            done = server.post("/v1/completions", GREEDY, headers=headers)
            assert (done.status_code, done.json()["error"]["code"]) == (401, "invalid_api_key")
        for path in ("/v1/models", "/metrics", "/nothing"):
            assert server.get(path).status_code == 401
        assert server.get("/health").status_code == 200
        key = {"authorization": "Bearer s3cret"}
        assert server.post("/v1/completions", GREEDY, headers=key).status_code == 200


def wait_until(true, seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_the_slot_of_a_client_that_went_is_free(stream):
    """With one slot the next request is answered only when the first is not any more, which takes 40 s alone."""
    with serving(slots=1, seconds_a_step=0.05) as server:
        body = {**GREEDY, "max_tokens": 200, "stream": stream}
        with server.client() as client:
            if stream:
                with client.stream("POST", "/v1/completions", json=body) as response:
                    next(response.iter_lines())
            else:
                with pytest.raises(Exception, match="timed out"):
                    client.post("/v1/completions", json=body, timeout=0.8)
        done = server.post("/v1/completions", {**GREEDY, "max_tokens": 2})
        assert done.json()["choices"][0]["text"] == greedy(IDS, 2)
        assert server.load() == (0, 0)


def test_more_than_may_wait_are_refused_and_the_others_answered():
    with serving(slots=1, queue=2, seconds_a_step=0.01) as server, ThreadPoolExecutor(12) as pool:
        first = pool.submit(server.post, "/v1/completions", GREEDY)
        wait_until(lambda: server.load() == (1, 0))
        rest = [pool.submit(server.post, "/v1/completions", {**GREEDY, "max_tokens": 4}) for _ in range(8)]
        found = sorted(each.result().status_code for each in rest)
        refused = next(each.result() for each in rest if each.result().status_code == 503)
        assert found.count(200) >= 2
        assert set(found) == {200, 503}
        assert refused.json()["error"]["code"] == "queue_full"
        assert refused.headers["retry-after"] == "1"
        assert first.result().json()["choices"][0]["text"] == greedy(IDS, 24)


def test_while_it_loads_it_says_so():
    go_on = threading.Event()
    session = served_here.Session(served_here.part(), served_here.Tcp(), {}, 20.0)
    enter = session.__enter__
    type_ = type("Late", (), {"__enter__": lambda _: (go_on.wait(20), enter())[1], "device": session.device,
                              "__exit__": lambda _, *error: session.close()})  # fmt: skip
    with serving(type_(), wait_for="loading") as server:
        done = server.get("/health")
        assert (done.status_code, done.json()["error"]["message"]) == (503, "Loading model")
        assert server.post("/v1/completions", GREEDY).status_code == 503
        assert "llrun_ready 0.0" in server.get("/metrics").text
        go_on.set()
        wait_until(lambda: server.get("/health").status_code == 200)
        assert server.post("/v1/completions", GREEDY).status_code == 200


def test_a_session_that_ends_ends_its_streams_with_an_error_and_the_server():
    with serving(seconds_a_step=0.03) as server, server.client() as client:
        body = {**GREEDY, "max_tokens": 200, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            scheduler = server.driver._scheduler
            scheduler.session._replies.put(RunError("R301", "device d7 was lost", INTERNAL))
            rest = [line for line in lines if line]
        error = json.loads(rest[-1].removeprefix("data: "))["error"]
        assert (error["type"], error["code"]) == ("server_error", "R301")
        server.thread.join(10)
        assert server.driver.error.code == "R301"


def test_stopping_ends_streams_with_an_error():
    with serving(seconds_a_step=0.03) as server, server.client() as client:
        body = {**GREEDY, "max_tokens": 200, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            server.ending.ask()
            rest = [line for line in lines if line]
        assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "stopped"
