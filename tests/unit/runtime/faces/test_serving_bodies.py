"""Bodies of requests: what they ask for, and what is refused by name."""

from __future__ import annotations

import json

import pytest

from llrun.errors import RunError
from llrun.faces.server import asked
from llrun.faces.server.faults import ApiError, of_run_error

HELLO = [{"role": "user", "content": "hello"}]


def completion(**fields: object):
    return asked.completion(json.dumps({"prompt": "a", **fields}).encode())


def chat(**fields: object):
    return asked.chat(json.dumps({"messages": HELLO, **fields}).encode())


def test_what_is_not_said_is_as_openai_has_it():
    prompts, wish = completion()
    assert prompts == ("a",)
    assert (wish.choices, wish.wanted, wish.stops, wish.stream, wish.likeliest) == (1, 16, (), False, None)
    assert (wish.sampling.temperature, wish.sampling.top_p, wish.sampling.top_k) == (1.0, 1.0, 0)
    assert chat()[1].wanted is None
    assert completion()[1].sampling.seed != completion()[1].sampling.seed


def test_what_is_said_arrives():
    _, wish = completion(n=3, max_tokens=7, stop=["x", "yz"], seed=5, temperature=0.5, top_p=0.9, top_k=40,
                         presence_penalty=0.25, frequency_penalty=-1, logprobs=4, stream=True,
                         stream_options={"include_usage": True})  # fmt: skip
    assert (wish.choices, wish.wanted, wish.stops, wish.likeliest) == (3, 7, ("x", "yz"), 4)
    assert [wish.sampling_of(i).seed for i in range(3)] == [5, 6, 7]
    assert (wish.sampling.temperature, wish.sampling.top_p, wish.sampling.top_k) == (0.5, 0.9, 40)
    assert (wish.penalties.presence, wish.penalties.frequency) == (0.25, -1)
    assert wish.stream
    assert wish.usage
    assert chat(logprobs=True, top_logprobs=2, max_tokens=9, max_completion_tokens=4)[1].wanted == 4
    assert chat(logprobs=True, top_logprobs=2)[1].likeliest == 2
    assert completion(seed=-1)[1].sampling.seed == 2**64 - 1


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [(["a", "b"], ("a", "b")), ([1, 2], ((1, 2),)), ([[1], [2, 3]], ((1,), (2, 3))), ("", ("",))],
)
def test_prompts_of_all_forms(prompt, prompts):
    assert completion(prompt=prompt)[0] == prompts


def test_parts_of_a_message_are_one_text():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages, _ = chat(messages=[{"role": "user", "content": parts, "name": "eva"}])
    assert messages == [{"role": "user", "content": "ab", "name": "eva"}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"store": True}, "store"),
        ({"mirostat": 2}, "mirostat"),
        ({"temperature": "hot"}, "temperature"),
        ({"stream_options": {"nonsense": 1}}, "stream_options.nonsense"),
        ({"stream_options": {}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "a"}]}, "role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "assistant", "function_call": {"name": "f"}}]}, "messages[0].function_call"),
        ({"n": 0}, "n"),
        ({"n": 65}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"stop": list("abcdefghijklmnopqrst")}, "stop"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "logprobs"),
        ({"temperature": -1}, None),
        ({"top_p": 0}, None),
        ({"presence_penalty": 3}, None),
    ],
)  # fmt: skip
def test_what_is_wrong_or_not_there_is_refused_by_name(fields, param):
    with pytest.raises(ApiError) as caught:
        chat(**fields)
    assert caught.value.status == 400
    assert caught.value.param == param
    named = param or next(iter(fields)).split("_")[0]
    assert named.split("[")[0].split(".")[0] in caught.value.message.replace("-", "_")


def test_what_asks_for_nothing_is_taken():
    chat(tools=[], tool_choice="auto", response_format={"type": "text"}, logit_bias={}, store=False, user="u",
         metadata={"a": "b"}, modalities=["text"], parallel_tool_calls=True)  # fmt: skip
    completion(echo=False, suffix="", best_of=1)


@pytest.mark.parametrize("fields", [{"echo": True}, {"suffix": "x"}, {"best_of": 4}, {"prompt": [True]},
                                    {"prompt": []}, {"prompt": None}, {"prompt": ["a", 1]}])  # fmt: skip
def test_completions_refuse_by_name_too(fields):
    with pytest.raises(ApiError) as caught:
        completion(**fields)
    assert caught.value.param == next(iter(fields))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"{}"])
def test_what_is_no_body_is_an_error(data):
    with pytest.raises(ApiError) as caught:
        asked.completion(data)
    assert caught.value.status == 400


def test_errors_of_the_runtime_have_their_status():
    found = {
        code: of_run_error(RunError(code, "x")).status for code in ("R105", "R103", "R402", "R301", "R502")
    }
    assert found == {"R105": 400, "R103": 400, "R402": 503, "R301": 500, "R502": 500}
