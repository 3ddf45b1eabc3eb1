"""Requests as programs send them that know OpenAI's API: Open WebUI, what was written for ollama's /v1, pages."""

from __future__ import annotations

import json

import openai
import pytest
from served_here import serving

from llrun.errors import RunError
from llrun.faces.server.crossing import check_origins

KEY = "s3cret"
PAGE = "https://chat.example.org"
PATH = "/v1/chat/completions"
TALK = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": [{"type": "text", "text": "who are you?"}]},
]
# What Open WebUI's own server adds to each call; with the key of the connection.
WEBUI = {
    "Authorization": f"Bearer {KEY}",
    "X-OpenWebUI-User-Name": "Eva",
    "X-OpenWebUI-User-Id": "1",
    "X-OpenWebUI-User-Role": "user",
}


@pytest.fixture(scope="module")
def server():
    with serving(api_key=KEY, origins=(PAGE, "http://localhost:3000")) as running:
        yield running


def streamed(server, body: dict) -> list[dict]:
    done = server.post(PATH, body, headers=WEBUI)
    assert done.status_code == 200, done.text
    assert done.headers["content-type"].startswith("text/event-stream")
    lines = done.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def test_open_webui_finds_the_model_and_chats(server):
    [model] = server.get("/v1/models", headers=WEBUI).json()["data"]
    body = {"stream": True, "model": model["id"], "messages": TALK, "max_tokens": 12, "temperature": 0}
    plain = streamed(server, body)
    said = "".join(event["choices"][0]["delta"].get("content", "") for event in plain)
    assert said
    full = streamed(server, {
        **body, "stream_options": {"include_usage": True}, "tools": None, "tool_choice": None, "user": "1",
        "metadata": {"chat_id": "a", "features": {"web_search": False}}, "stop": None, "seed": None, "logit_bias": None,
        "response_format": None, "reasoning_effort": None, "frequency_penalty": 0, "presence_penalty": 0, "top_p": 1,
    })  # fmt: skip
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in full if e["choices"]) == said
    assert full[-1]["usage"]["completion_tokens"] == 12


def test_open_webui_names_a_chat(server):
    """Titles, tags and follow-ups are asked for without a stream."""
    body = {"model": "synthetic", "messages": TALK[:2], "stream": False, "max_completion_tokens": 10}
    done = server.post(PATH, body, headers=WEBUI).json()
    assert done["choices"][0]["message"]["role"] == "assistant"
    assert done["usage"]["completion_tokens"] == 10


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "a"},
        {"metadata": {"a": "b"}},
        {"store": False},
        {"parallel_tool_calls": True},
        {"service_tier": "flex"},
        {"safety_identifier": "a"},
        {"prompt_cache_key": "a"},
        {"prompt_cache_retention": "24h"},
        {"prediction": {"type": "content", "content": "x"}},
        {"reasoning_effort": "medium"},
        {"verbosity": "medium"},
        {"modalities": ["text"]},
        {"logit_bias": {}},
        {"stream_options": None},
        {"tools": []},
        {"functions": None},
    ],
)
def test_what_changes_no_answer_is_taken(server, fields):
    body = {"messages": TALK, "temperature": 0, "max_tokens": 6}
    plain, told = (server.post(PATH, each, headers=WEBUI) for each in (body, {**body, **fields}))
    assert told.status_code == 200, told.text
    assert told.json()["choices"] == plain.json()["choices"]


@pytest.mark.parametrize(
    "fields",
    [
        {"store": True},
        {"reasoning_effort": "high"},
        {"verbosity": "low"},
        {"logit_bias": {"5": -100}},
        {"modalities": ["audio"]},
        {"web_search_options": {}},
        {"num_ctx": 4096},
        {"options": {"num_ctx": 4096}},
        {"think": False},
    ],
)
def test_what_would_change_an_answer_is_refused_by_name(server, fields):
    done = server.post(PATH, {"messages": TALK, **fields}, headers=WEBUI)
    assert done.status_code == 400
    assert done.json()["error"]["param"] == next(iter(fields))


def test_what_was_written_for_ollama_goes_on():
    """Its users give a key that nothing asks for, a base URL with a slash, and prompts of both paths."""
    with serving() as server, openai.OpenAI(base_url=f"{server.url}/v1/", api_key="ollama") as client:
        [model] = client.models.list().data
        assert client.models.retrieve(model.id).id == model.id
        chunks = list(
            client.chat.completions.create(model=model.id, messages=TALK, stream=True, max_tokens=8)
        )
        assert chunks[0].choices[0].delta.role == "assistant"
        assert {chunk.id for chunk in chunks} == {chunks[0].id}
        assert chunks[-1].choices[0].finish_reason == "length"
        pieces = list(client.completions.create(model=model.id, prompt="Say", stream=True, max_tokens=8))
        assert "".join(piece.choices[0].text for piece in pieces)
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model=model.id, input="a")


def asks_first(server, origin: str):
    """What a browser sends before a page's request."""
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, x-stainless-os",
    }
    with server.client() as client:
        return client.options(PATH, headers=headers)


def test_pages_of_the_origins_that_were_named_may_ask(server):
    first = asks_first(server, PAGE)
    assert first.status_code == 200
    assert first.headers["access-control-allow-origin"] == PAGE
    assert "authorization" in first.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in first.headers
    body = {"messages": TALK, "max_tokens": 2}
    done = server.post(PATH, body, headers={**WEBUI, "Origin": PAGE})
    assert (done.status_code, done.headers["access-control-allow-origin"]) == (200, PAGE)
    refused = server.post(PATH, body, headers={"Origin": PAGE})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, PAGE)


@pytest.mark.parametrize("origin", ["https://other.example.org", "https://chat.example.org.evil.org", "null"])
def test_pages_of_others_may_not(server, origin):
    assert "access-control-allow-origin" not in asks_first(server, origin).headers
    done = server.post(PATH, {"messages": TALK, "max_tokens": 2}, headers={**WEBUI, "Origin": origin})
    assert "access-control-allow-origin" not in done.headers


def test_without_a_word_no_page_may():
    with serving() as server:
        first = asks_first(server, PAGE)
        assert first.status_code == 405
        assert not [name for name in first.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "origin", ["chat.example.org", "https://a.org/path", "https://", "ftp://a.org", "a,b", ""]
)
def test_what_is_no_origin_is_refused(origin):
    with pytest.raises(RunError, match="--cors takes an origin"):
        check_origins([origin])
    check_origins(["*", PAGE, "http://localhost:3000"])
