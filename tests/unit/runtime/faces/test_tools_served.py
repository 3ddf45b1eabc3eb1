"""`tools` over HTTP: calls in answers and streams, and calls and results in messages, as clients send and read them."""

from __future__ import annotations

import json

import openai
import pytest
from served_here import TEMPLATE as NO_TOOLS
from served_here import serving

END = "~"  # no letter of these calls
PATH = "/v1/chat/completions"
LINE = "{{ '\\n' }}"  # a line end behind a tag is taken away
CALL = '<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>'
TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function.name }} {% endfor %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for c in m.tool_calls or [] %}" + CALL + "{% endfor %}"
    "{% if m.role == 'assistant' %}" + END + "{% endif %}" + LINE + "{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
PLACE = {"type": "object", "properties": {"place": {"enum": ["Ulm", "Bonn"]}}, "required": ["place"]}
STRICT = {**PLACE, "additionalProperties": False}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": STRICT, "strict": True}}
CLOCK = {
    "type": "function",
    "function": {
        "name": "clock",
        "description": "The time",
        "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
    },
}
SAID = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def server():
    with serving(special=END, template=TEMPLATE) as running:
        yield running


def ask(**fields: object) -> dict:
    return {"messages": SAID, "tools": [WEATHER, CLOCK], "seed": 5, "tool_choice": "required", **fields}


def choices(server, body: dict) -> list[dict]:
    done = server.post(PATH, body)
    assert done.status_code == 200, done.text
    return done.json()["choices"]


def called(message: dict) -> list[tuple[str, dict]]:
    calls = message.get("tool_calls", [])
    assert len({call["id"] for call in calls}) == len(calls)
    assert all(call["type"] == "function" for call in calls)
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]


def is_right(call: tuple[str, dict]) -> bool:
    return call in [("weather", {"place": "Ulm"}), ("weather", {"place": "Bonn"}), ("clock", {})]


def streamed(server, body: dict) -> list[dict]:
    lines = server.post(PATH, {**body, "stream": True}).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines[:-2]]


def test_required_calls_are_of_the_tools_and_right(server):
    for each in choices(server, ask(n=8, parallel_tool_calls=False)):
        message = each["message"]
        assert each["finish_reason"] == "tool_calls"
        assert message["content"] is None
        assert len(called(message)) == 1
        assert is_right(called(message)[0])


def test_several_at_once_unless_they_are_not_wanted(server):
    several = choices(server, ask(n=24))
    counts = {len(called(each["message"])) for each in several if each["finish_reason"] == "tool_calls"}
    assert len(counts) > 1
    assert all(is_right(call) for each in several for call in called(each["message"]))


def test_the_one_that_is_named_is_called(server):
    name = {"type": "function", "function": {"name": "clock"}}
    for each in choices(server, ask(n=4, tool_choice=name)):
        assert called(each["message"]) == [("clock", {})]


def test_a_stream_has_the_same_calls_and_nothing_of_them_as_content(server):
    for seed in range(6):
        body = ask(seed=seed, max_tokens=160)
        whole = choices(server, body)[0]
        chunks = streamed(server, body)
        assert "".join(chunk["delta"].get("content") or "" for chunk in chunks) == ""
        pieces = [call for chunk in chunks for call in chunk["delta"].get("tool_calls", [])]
        assert [piece.pop("index") for piece in pieces] == list(range(len(pieces)))
        assert called({"tool_calls": pieces}) == called(whole["message"])
        assert chunks[-1]["finish_reason"] == whole["finish_reason"]


def test_half_a_call_is_nothing_and_says_length(server):
    body = ask(max_tokens=30, tool_choice={"type": "function", "function": {"name": "weather"}})
    [whole] = choices(server, body)
    assert whole["finish_reason"] == "length"
    assert whole["message"] == {"role": "assistant", "content": "", "refusal": None}
    assert all(not chunk["delta"].get("content") for chunk in streamed(server, body))


def test_an_answer_is_a_call_or_a_value_of_the_schema(server):
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes", "no"]}}}
    asked = ask(n=24, tool_choice="auto", parallel_tool_calls=False, response_format=schema, temperature=4)
    found = choices(server, asked)
    called_some = [each for each in found if each["finish_reason"] == "tool_calls"]
    said = [each["message"]["content"] for each in found if each["finish_reason"] == "stop"]
    assert called_some
    assert said
    assert all(is_right(call) for each in called_some for call in called(each["message"]))
    assert {json.loads(text) for text in said} <= {"yes", "no"}


def test_without_a_call_tools_change_the_prompt_alone(server):
    free = {"messages": SAID, "seed": 5, "max_tokens": 20}
    [plain] = choices(server, free)
    assert choices(server, {**free, "tools": [CLOCK], "tool_choice": "none"}) == [plain]
    [offered] = choices(server, {**free, "tools": [CLOCK]})
    assert offered["finish_reason"] == "length"
    assert set(offered["message"]) == {"role", "content", "refusal"}
    logprobs = choices(server, {**free, "tools": [CLOCK], "logprobs": True})[0]["logprobs"]["content"]
    assert "".join(each["token"] for each in logprobs).startswith(offered["message"]["content"])


def test_calls_and_results_are_given_to_the_template(server):
    """Of the tokens of a prompt of letters the count shows the text."""
    arguments = {"place": "Ulm"}
    call = {"id": "call_1", "type": "function", "index": 0}
    call["function"] = {"name": "weather", "arguments": json.dumps(arguments)}
    talk = [
        *SAID,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "rain"}]},
    ]
    usage = server.post(PATH, {"messages": talk, "max_tokens": 1}).json()["usage"]
    text = (
        'user: hello\nassistant: <tool_call>\n{"name": "weather", "arguments": {"place": "Ulm"}}\n</tool_call>~\n'
        "tool: rain\nassistant: "
    )
    assert usage["prompt_tokens"] == len(text)


def function(**fields: object) -> dict:
    return {"type": "function", "function": {"name": "f", **fields}}


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"tools": [function(name="a b")]}, "tools[0].function.name", "letters"),
        ({"tools": [CLOCK, CLOCK]}, "tools", "same name"),
        ({"tools": [function(parameters={"type": "array"})]}, "tools[0].function.parameters", "object"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "web_search"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "needs function"),
        ({"tools": [function(extra=1)]}, "tools[0].function.extra", "extra"),
        ({"tools": [function(name=f"f{i}") for i in range(129)]}, "tools", "128 are the most"),
        ({"tools": []}, "tool_choice", "needs tools"),
        ({"tool_choice": "any"}, "tool_choice", "'any'"),
        ({"tool_choice": {"type": "function", "function": {"name": "h"}}}, "tool_choice", "'h'"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type", "allowed_tools"),
        (
            {"tools": [function(strict=True, parameters={"properties": {"x": {"not": {}}}})]},
            "tools",
            "not",
        ),
    ],
)
def test_what_cannot_be_called_is_refused_by_name(server, fields, param, words):
    done = server.post(PATH, ask(**fields))
    assert done.status_code == 400
    error = done.json()["error"]
    assert error["param"] == param
    assert words in error["message"]


def test_arguments_in_a_message_are_an_object(server):
    call = {"id": "c", "function": {"name": "f", "arguments": "[1]"}}
    done = server.post(PATH, {"messages": [*SAID, {"role": "assistant", "tool_calls": [call]}]})
    assert done.json()["error"]["param"] == "messages[1].tool_calls[0].function.arguments"


def test_a_template_without_tools_says_so():
    with serving(special=END, template=NO_TOOLS) as running:
        result = {"role": "tool", "tool_call_id": "c", "content": "rain"}
        for body, param in ((ask(), "tools"), ({"messages": [*SAID, result]}, "messages")):
            done = running.post(PATH, body)
            assert (done.status_code, done.json()["error"]["param"]) == (400, param)
            assert "knows no tools" in done.json()["error"]["message"]
            assert done.json()["error"]["code"] == "R144"
        assert running.post(PATH, {**ask(tool_choice="none"), "max_tokens": 1}).status_code == 200


def test_the_openai_client_calls_and_goes_on(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        asked = {"model": "synthetic", "tools": [WEATHER], "tool_choice": "required", "seed": 2}
        done = client.chat.completions.create(messages=SAID, parallel_tool_calls=False, **asked)
        message = done.choices[0].message
        assert json.loads(message.tool_calls[0].function.arguments)["place"] in ("Ulm", "Bonn")
        with client.chat.completions.stream(messages=SAID, parallel_tool_calls=False, **asked) as stream:
            final = stream.get_final_completion().choices[0]
        assert final.finish_reason == "tool_calls"
        assert final.message.tool_calls[0].function.parsed_arguments["place"] in ("Ulm", "Bonn")
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "rain"}
        told = [*SAID, message, result]
        more = client.chat.completions.create(model="synthetic", messages=told, tools=[WEATHER], max_tokens=4)
        assert more.choices[0].finish_reason == "length"
