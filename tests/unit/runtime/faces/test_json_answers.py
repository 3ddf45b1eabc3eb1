"""`response_format` over HTTP: answers that are values of a schema, several at once, whole or cut."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from served_here import serving

from llrun.requests import grammars

END = "~"  # no letter of these values
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}" + END + "\n{% endfor %}assistant: "
PATH = "/v1/chat/completions"
PET = {
    "type": "object",
    "properties": {"kind": {"enum": ["cat", "dog"]}, "legs": {"type": "integer", "minimum": 0, "maximum": 8}},
    "required": ["kind", "legs"],
    "additionalProperties": False,
}
WORDS = {"type": "array", "items": {"enum": ["up", "down"]}, "minItems": 2, "maxItems": 4}


def form(schema: dict) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "wanted", "schema": schema, "strict": True}}


def ask(schema: dict, **fields: object) -> dict:
    said = [{"role": "user", "content": "a pet"}]
    return {"messages": said, "temperature": 1, "seed": 7, "response_format": form(schema), **fields}


def is_pet(text: str) -> bool:
    value = json.loads(text)
    return value["kind"] in ("cat", "dog") and 0 <= value["legs"] <= 8 and len(value) == 2


@pytest.fixture(scope="module")
def server():
    with serving(special=END, template=TEMPLATE) as running:
        yield running


def answers(server, body: dict) -> list[tuple[str, str]]:
    done = server.post(PATH, body)
    assert done.status_code == 200, done.text
    return [(each["message"]["content"], each["finish_reason"]) for each in done.json()["choices"]]


def test_each_answer_is_a_value_of_the_schema_and_ends(server):
    several = answers(server, ask(PET, n=6))
    assert all(is_pet(text) and reason == "stop" for text, reason in several)
    assert len({text for text, _ in several}) > 1  # each has a seed of its own
    assert answers(server, ask(PET, n=6)) == several
    assert is_pet(answers(server, ask(PET, temperature=0))[0][0])


def test_a_stream_is_the_same_answer(server):
    whole = answers(server, ask(PET))[0][0]
    lines = server.post(PATH, ask(PET, stream=True)).text.split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line and "[DONE]" not in line]
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == whole
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


def test_several_at_once_with_grammars_of_their_own_get_what_they_get_alone(server):
    free = {key: value for key, value in ask(PET, max_tokens=20).items() if key != "response_format"}
    bodies = [ask(PET), ask(WORDS), free, ask(PET, seed=8), ask(WORDS, temperature=0), free] * 3
    alone = [answers(server, body) for body in bodies[:6]] * 3
    with ThreadPoolExecutor(len(bodies)) as pool:
        assert list(pool.map(lambda body: answers(server, body), bodies)) == alone


def test_what_is_cut_says_so(server):
    [(text, reason)] = answers(server, ask(PET, max_tokens=5))
    assert reason == "length"
    assert text == answers(server, ask(PET))[0][0][:5]


def test_any_object(server):
    body = ask(PET, response_format={"type": "json_object"}, n=4)
    for text, reason in answers(server, body):
        assert text.startswith("{")
        assert reason == "length" or isinstance(json.loads(text), dict)


def test_a_schema_is_read_while_others_are_answered(server, monkeypatch):
    """The thread that drives the devices waits for no grammar."""
    reading, read = threading.Event(), threading.Event()

    def slow(self, grammar):
        reading.set()
        assert read.wait(20)
        return compiled(self, grammar)

    compiled = grammars.Grammars._compiled
    monkeypatch.setattr(grammars.Grammars, "_compiled", slow)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(answers, server, ask({**PET, "title": "another"}))
        assert reading.wait(20)
        assert answers(server, {"messages": ask(PET)["messages"], "max_tokens": 5})[0][1] == "length"
        read.set()
        assert is_pet(late.result(20)[0][0])


@pytest.mark.parametrize(
    ("asked", "param", "words"),
    [
        (form({"type": "array", "uniqueItems": True}), "response_format", "uniqueItems"),
        (form({"enum": ["x" * 140000]}), "response_format", "131072 are the most"),
        ({"type": "json_schema"}, "response_format.json_schema", "needs json_schema"),
        ({"type": "json_schema", "json_schema": {"schema": {}}}, "name", "missing"),
        (
            {"type": "json_schema", "json_schema": {"name": "a b"}},
            "response_format.json_schema.name",
            "letters",
        ),
        ({"type": "grammar"}, "response_format.type", "'grammar'"),
        ("json", "response_format", "object"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_the_reason(server, asked, param, words):
    done = server.post(PATH, ask(PET, response_format=asked))
    assert done.status_code == 400
    error = done.json()["error"]
    assert error["param"] == param
    assert words in error["message"]
    assert server.load() == (0, 0)


def test_a_schema_that_takes_too_much_ends_its_own_answer_alone(server):
    """Not every bound can be known before an answer is under way."""
    costly = {"type": "string", "pattern": "^b{20}(a?){3000}a{3000}$"}
    done = server.post(PATH, ask(costly, temperature=0))
    assert (done.status_code, done.json()["error"]["code"]) == (400, "R142")
    lines = [
        line for line in server.post(PATH, ask(costly, temperature=0, stream=True)).text.split("\n\n") if line
    ]
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "R142"
    assert server.load() == (0, 0)
    assert is_pet(answers(server, ask(PET))[0][0])


def test_a_model_without_an_end_token_says_so():
    with serving() as running:
        done = running.post(PATH, ask(PET))
        assert (done.status_code, done.json()["error"]["code"]) == (400, "R143")
        assert "no token that ends" in done.json()["error"]["message"]


def test_the_openai_client_reads_objects(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        asked = {"model": "synthetic", "messages": ask(PET)["messages"], "seed": 3}
        done = client.chat.completions.create(response_format=form(PET), **asked)
        assert is_pet(done.choices[0].message.content)
        with client.chat.completions.stream(response_format=form(PET), **asked) as stream:
            final = stream.get_final_completion()
        assert final.choices[0].message.content == done.choices[0].message.content
