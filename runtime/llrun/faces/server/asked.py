"""What a request asks for, from its body. What is not done here is refused by name."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llrun.errors import RunError
from llrun.faces.server.bodies import ChatBody, CompletionBody, MessageBody, Shared, read
from llrun.faces.server.faults import ApiError, invalid, not_supported, of_run_error
from llrun.faces.server.formats import schema_of
from llrun.faces.server.tools import Offer, calls_of, offer_of
from llrun.requests.sampling import Penalties, Sampling

COMPLETION_TOKENS = 16  # as OpenAI's API has it
MAX_CHOICES, MAX_STOPS, MAX_STOP_CHARACTERS, MAX_LIKELIEST = 64, 16, 1024, 20
SEED_BITS = 64
Prompt = str | tuple[int, ...]
# Fields whose meaning is not there, with what is to be said of them.
LATER = {
    "functions": "use tools",
    "function_call": "use tool_choice",
    "modalities": "an answer is text",
    "audio": "an answer is text",
    "reasoning_effort": "nothing changes how a model thinks",
    "verbosity": "say in a message how long an answer is to be",
    "web_search_options": "leave it out",
    "store": "nothing is kept",
    "logit_bias": "leave it out",
    "echo": "an answer is what follows the prompt",
    "suffix": "an answer is what follows the prompt",
}
# Of those, values that ask for nothing.
NOTHING: Mapping[str, Sequence[Any]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "reasoning_effort": ("medium",),  # what is meant without a word, as of the next
    "verbosity": ("medium",),
    "store": (False,),
    "logit_bias": ({},),
    "echo": (False,),
    "suffix": ("",),
}
LATER_IN_MESSAGES = ("function_call", "audio")


@dataclass(frozen=True)
class Asked:
    """What holds for each of a request's answers. `choices`: how many to a prompt; each has a seed of its own, that of
    `sampling` and those after it. `wanted`: tokens, None as many as fit. `likeliest`: how many of the likeliest tokens
    are to be told with each, None no probabilities at all. `usage`: a stream ends with what it took. `schema`: what
    the answers follow, None where they are free. `offer`: what they may call."""

    model: str | None
    choices: int
    wanted: int | None
    stops: tuple[str, ...]
    sampling: Sampling
    penalties: Penalties
    likeliest: int | None
    stream: bool
    usage: bool
    schema: Mapping[str, Any] | None = None
    offer: Offer | None = None

    def sampling_of(self, choice: int) -> Sampling:
        """How the answer of that number is chosen."""
        own, seed = self.sampling, (self.sampling.seed + choice) % (1 << SEED_BITS)
        return Sampling(own.temperature, own.top_k, own.top_p, seed)


def completion(data: bytes) -> tuple[tuple[Prompt, ...], Asked]:
    """The prompts, each to be continued, and how. Raises ApiError."""
    body = read(data, CompletionBody)
    _check_later(body)
    if body.best_of not in (None, 1, body.n):
        raise not_supported("best_of", "every answer asked for is given: use n")
    prompts = _prompts(body.prompt)
    asked = _asked(body, COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens, body.logprobs)
    if asked.choices * len(prompts) > MAX_CHOICES:
        raise invalid(f"{len(prompts)} prompts x n {asked.choices} are over {MAX_CHOICES} answers", "n")
    return prompts, asked


def chat(data: bytes) -> tuple[list[dict[str, Any]], Asked]:
    """The messages as templates read them, and how to answer. Raises ApiError."""
    body = read(data, ChatBody)
    _check_later(body)
    offer = offer_of(body.tools, body.tool_choice, body.parallel_tool_calls)
    if not body.messages:
        raise invalid("messages is empty: give at least one", "messages")
    messages = [_message(message, f"messages[{i}]") for i, message in enumerate(body.messages)]
    wanted = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs needs logprobs: true", "top_logprobs")
    asked = _asked(body, wanted, (body.top_logprobs or 0) if body.logprobs else None)
    return messages, replace(asked, schema=schema_of(body.response_format), offer=offer)


def _asked(body: Shared, wanted: int | None, likeliest: int | None) -> Asked:
    choices = 1 if body.n is None else body.n
    if not 1 <= choices <= MAX_CHOICES:
        raise invalid(f"n is {choices}, it must be 1 to {MAX_CHOICES}", "n")
    if wanted is not None and wanted < 1:
        raise invalid(f"max_tokens is {wanted}, it must be 1 or more", "max_tokens")
    if likeliest is not None and not 0 <= likeliest <= MAX_LIKELIEST:
        raise invalid(
            f"logprobs asks for the {likeliest} likeliest tokens, it must be 0 to {MAX_LIKELIEST}", "logprobs"
        )
    if body.stream_options and not body.stream:
        raise invalid("stream_options needs stream: true", "stream_options")
    seed = secrets.randbits(32) if body.seed is None else body.seed % (1 << SEED_BITS)
    try:
        sampling = Sampling(_or(body.temperature, 1.0), _or(body.top_k, 0), _or(body.top_p, 1.0), seed)
        penalties = Penalties(_or(body.presence_penalty, 0.0), _or(body.frequency_penalty, 0.0))
    except RunError as error:
        raise of_run_error(error) from error
    return Asked(
        body.model,
        choices,
        wanted,
        _stops(body.stop),
        sampling,
        penalties,
        likeliest,
        bool(body.stream),
        bool(body.stream_options and body.stream_options.include_usage),
    )


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MAX_STOPS or not all(1 <= len(each) <= MAX_STOP_CHARACTERS for each in stops):
        rule = f"at most {MAX_STOPS} texts of 1 to {MAX_STOP_CHARACTERS} characters"
        raise invalid(f"stop takes {rule}", "stop")
    return stops


def _prompts(prompt: object) -> tuple[Prompt, ...]:
    """A text, token ids, or a list of either."""
    if isinstance(prompt, str):
        return (prompt,)
    if isinstance(prompt, list) and prompt:
        if _are_ids(prompt):
            return (tuple(prompt),)
        if all(isinstance(each, str) for each in prompt):
            return tuple(prompt)
        if all(isinstance(each, list) and _are_ids(each) for each in prompt):
            return tuple(tuple(each) for each in prompt)
    raise invalid("prompt must be a text, a list of token ids, or a list of either, and not empty", "prompt")


def _are_ids(values: Sequence[object]) -> bool:
    return bool(values) and all(isinstance(value, int) and not isinstance(value, bool) for value in values)


def _check_later(body: Shared) -> None:
    """Refuse what asks for something that is not there."""
    for name, what in LATER.items():
        value = getattr(body, name, None)
        if value is not None and value not in NOTHING.get(name, ()):
            raise not_supported(name, what)


def _message(message: MessageBody, place: str) -> dict[str, Any]:
    for name in LATER_IN_MESSAGES:
        if getattr(message, name):
            raise not_supported(f"{place}.{name}", "messages are text")
    content = message.content
    if isinstance(content, list):
        for i, part in enumerate(content):
            if part.type != "text" or part.text is None:
                raise not_supported(f"{place}.content[{i}].type", f"{part.type!r}; messages are text")
        content = "".join(part.text or "" for part in content)
    calls = calls_of(message.tool_calls or (), f"{place}.tool_calls")
    if content is None and not calls:
        raise _no_content(place)
    said = {"role": message.role, "content": content or ""}
    more = {
        "name": message.name,
        "reasoning_content": message.reasoning_content,
        "tool_calls": calls or None,
        "tool_call_id": message.tool_call_id,
    }
    return said | {name: value for name, value in more.items() if value is not None}


def _no_content(place: str) -> ApiError:
    return invalid(f"{place} has no content", f"{place}.content")
