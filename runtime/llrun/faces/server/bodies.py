"""The fields of request bodies, as OpenAI's API has them. Types alone are checked here; `asked` says what they mean."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from llrun.faces.server.faults import ApiError, invalid

WHERE = re.compile(r" - at `\$\.?(?P<place>.*)`$")
UNKNOWN = re.compile(r"unknown field `(?P<name>.*?)`")


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    include_usage: bool = False
    include_obfuscation: bool = False  # padding against listeners, which a plain connection does not need


class Shared(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What both kinds of request have. Nothing depends here on who asks and how it is billed or kept in a cache."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None


class CompletionBody(Shared, kw_only=True):
    prompt: Any
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


class CalledFunction(msgspec.Struct):
    name: str
    arguments: Any = ""


class CalledBody(msgspec.Struct):
    """A call as an answer had it; streams number them, and clients send the number back."""

    id: str | None = None
    type: str = "function"
    function: CalledFunction | None = None


class Part(msgspec.Struct):
    type: str
    text: str | None = None


class MessageBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CalledBody] | None = None
    tool_call_id: str | None = None
    function_call: Any = None
    audio: Any = None
    annotations: Any = None  # clients send back what an answer had


class JsonSchema(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`strict` is no less and no more here: an answer follows the schema in any case."""

    name: str
    schema: dict[str, Any] = {}
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(msgspec.Struct, forbid_unknown_fields=True):
    type: str
    json_schema: JsonSchema | None = None


class FunctionBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(msgspec.Struct):
    type: str = "function"
    function: FunctionBody | None = None


class NamedFunction(msgspec.Struct, forbid_unknown_fields=True):
    name: str


class ToolChoice(msgspec.Struct):
    type: str
    function: NamedFunction | None = None


class ChatBody(Shared, kw_only=True):
    messages: list[MessageBody]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    tools: list[ToolBody] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None  # it says what an answer may be like, to have it sooner, and changes none
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None
    store: bool | None = None


Body = TypeVar("Body", CompletionBody, ChatBody)


def read(data: bytes, kind: type[Body]) -> Body:
    """A body of that kind. Raises ApiError, naming the field."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise _fault(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"the body is not JSON: {error}") from error


def _fault(text: str) -> ApiError:
    where = WHERE.search(text)
    place = where["place"] if where else ""
    unknown = UNKNOWN.search(text)
    if unknown:
        name = f"{place}.{unknown['name']}".strip(".")
        return invalid(f"{name} is not a parameter that is known here", name, "unknown_parameter")
    said = WHERE.sub("", text)
    missing = re.search(r"missing required field `(.*)`", said)
    return invalid(f"{place or 'the body'}: {said}", missing[1] if missing else place or None)
