"""The JSON objects of answers, as OpenAI's API has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llrun.faces.server.choices import Called, Ended, Event, Likely, Piece, TokenChances
from llrun.requests.tool_calls import Call

Object = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """What tells the answers of one path from the other's: how an id begins, and the objects' names."""

    chat: bool

    @property
    def prefix(self) -> str:
        return "chatcmpl-" if self.chat else "cmpl-"

    @property
    def whole(self) -> str:
        return "chat.completion" if self.chat else "text_completion"

    @property
    def chunk(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"


@dataclass(frozen=True)
class Head:
    """What all objects of one request share. `told`: whether probabilities were asked for."""

    kind: Kind
    id: str
    created_s: int
    model: str
    told: bool

    def whole(self, choices: Sequence[Object], usage: Object) -> Object:
        return {**self._shared(self.kind.whole), "choices": list(choices), "usage": usage}

    def first_chunk(self, index: int) -> Object:
        """A chat's answer begins with its role."""
        delta = {"role": "assistant", "content": ""}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return {**self._shared(self.kind.chunk), "choices": [choice]}

    def chunk(self, event: Event) -> Object:
        text = event.text if isinstance(event, Piece) else ""
        reason = event.reason if isinstance(event, Ended) else None
        chances = event.chances if isinstance(event, Piece) else ()
        choice: Object = {"index": event.index, "finish_reason": reason, "logprobs": None}
        if self.told and chances:
            choice["logprobs"] = logprobs(self.kind, chances)
        if isinstance(event, Called):
            choice["delta"] = {"tool_calls": [{"index": event.number, **called(event.call)}]}
        elif self.kind.chat:
            choice["delta"] = {"content": text} if isinstance(event, Piece) else {}
        else:
            choice["text"] = text
        return {**self._shared(self.kind.chunk), "choices": [choice]}

    def usage_chunk(self, usage: Object) -> Object:
        return {**self._shared(self.kind.chunk), "choices": [], "usage": usage}

    def _shared(self, name: str) -> Object:
        return {"id": self.id, "object": name, "created": self.created_s, "model": self.model}


@dataclass
class Whole:
    """An answer that is not streamed, as it grows."""

    index: int
    texts: list[str] = field(default_factory=list)
    calls: list[Object] = field(default_factory=list)
    chances: list[TokenChances] = field(default_factory=list)
    reason: str = ""

    def add(self, event: Event) -> None:
        if isinstance(event, Ended):
            self.reason = event.reason
        elif isinstance(event, Called):
            self.calls.append(called(event.call))
        else:
            self.texts.append(event.text)
            self.chances += event.chances

    def object(self, head: Head) -> Object:
        text = "".join(self.texts)
        told = logprobs(head.kind, self.chances) if head.told else None
        choice: Object = {"index": self.index, "finish_reason": self.reason, "logprobs": told}
        if head.kind.chat:
            message: Object = {"role": "assistant", "content": text, "refusal": None}
            if self.calls:
                message = {**message, "content": text or None, "tool_calls": self.calls}
            choice["message"] = message
        else:
            choice["text"] = text
        return choice


def called(call: Call) -> Object:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def usage(prompt_tokens: int, tokens: int, reused: int) -> Object:
    """`reused`: tokens of the prompts that were not computed again."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": tokens,
        "total_tokens": prompt_tokens + tokens,
        "prompt_tokens_details": {"cached_tokens": reused},
    }


def logprobs(kind: Kind, chances: Sequence[TokenChances]) -> Object:
    """Probabilities in the form of the path: of chats one object a token, of completions lists side by side."""
    if kind.chat:
        content = [
            {
                **_of_chat(each.chosen),
                "top_logprobs": [_of_chat(likely) for likely in each.likeliest],
            }
            for each in chances
        ]
        return {"content": content, "refusal": None}
    return {
        "tokens": [each.chosen.text for each in chances],
        "token_logprobs": [each.chosen.logprob for each in chances],
        "top_logprobs": [{one.text: one.logprob for one in each.likeliest} for each in chances],
    }


def _of_chat(likely: Likely) -> Object:
    return {"token": likely.text, "logprob": likely.logprob, "bytes": likely.bytes}
