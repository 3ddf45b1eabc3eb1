"""The openai package as the client of a server here, as its users write it."""

from __future__ import annotations

import openai
import pytest
from served_here import serving

ASKED = {"model": "synthetic", "temperature": 0, "max_tokens": 20}
MESSAGES = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def client():
    with serving(api_key="s3cret") as server:
        url = f"{server.url}/v1"
        with openai.OpenAI(base_url=url, api_key="s3cret", max_retries=0, timeout=20) as made:
            yield made


def test_a_chat_and_its_stream_say_the_same(client):
    whole = client.chat.completions.create(messages=MESSAGES, **ASKED)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 20
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(messages=MESSAGES, **ASKED, **options))
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == 20
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    # The stream went on from what the whole answer had left: its prompt but for the last token.
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == whole.usage.prompt_tokens - 1


def test_the_client_that_puts_streams_together_has_the_same(client):
    said = client.chat.completions.create(messages=MESSAGES, **ASKED).choices[0].message.content
    asked = {**ASKED, "messages": MESSAGES, "stop": said[9:12], "logprobs": True, "top_logprobs": 2}
    with client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion()
    whole = client.chat.completions.create(**asked)
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].logprobs.content == whole.choices[0].logprobs.content


def test_completions_models_and_stops(client):
    assert [model.id for model in client.models.list()] == ["synthetic"]
    assert client.models.retrieve("synthetic").owned_by == "llrun"
    whole = client.completions.create(prompt="the cat", logprobs=1, n=2, **ASKED)
    assert whole.choices[0].text == whole.choices[1].text
    assert len(whole.choices[0].logprobs.tokens) == 20
    stop = whole.choices[0].text[5:8]
    stopped = client.completions.create(prompt="the cat", stop=[stop], **ASKED)
    assert stopped.choices[0].text == whole.choices[0].text.partition(stop)[0]
    assert stopped.choices[0].finish_reason == "stop"


def test_errors_are_those_that_its_users_catch(client):
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    with pytest.raises(openai.BadRequestError, match="knows no tools") as caught:
        client.chat.completions.create(messages=MESSAGES, tools=[tool], **ASKED)
    assert caught.value.code == "R144"
    assert caught.value.param == "tools"
    with pytest.raises(openai.NotFoundError, match="model 'other' is not here"):
        client.completions.create(prompt="a", model="other")
    with pytest.raises(openai.BadRequestError, match="more than the context"):
        client.completions.create(prompt="a" * 300, model="synthetic")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="other").models.list()
