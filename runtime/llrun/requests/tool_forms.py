"""How a model calls functions: the form that its chat template writes calls in, seen by having it write one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llrun.errors import RunError
from llrun.requests.chat_template import ChatTemplate, Message
from llrun.requests.tokenizer import Codec, Tokenizer

NO_TOOLS, UNKNOWN_FORM = "R144", "R145"
QUESTION, NAME, ARGUMENT = "What is asked?", "seen_by_this", "given"
CALL_ID = "a1B2c3D4e"  # of nine letters and digits, as Mistral's templates want them


@dataclass(frozen=True)
class ToolForm:
    """What is around a call `{"name": ..., ARGUMENTS: {...}}` in an answer.

    `begin` and `end`: texts before and after it, `end` empty where the answer's end is its end. `before` and `after`:
    the space between those and the call. `listed`: the calls are one list. `only_first`: an answer is text or a call,
    and a call is its first word; `begin` may be left out then. `short_ids`: ids have nine letters and digits.
    """

    begin: str
    end: str = ""
    arguments: str = "arguments"
    before: str = ""
    after: str = ""
    listed: bool = False
    only_first: bool = False
    short_ids: bool = False


HERMES = ToolForm("<tool_call>", "</tool_call>")
MISTRAL = ToolForm("[TOOL_CALLS]", listed=True, short_ids=True)
LLAMA = ToolForm("<|python_tag|>", arguments="parameters", only_first=True)
FORMS = {"Hermes'": HERMES, "Mistral's": MISTRAL, "Llama's": LLAMA}


def tool_form(template: ChatTemplate) -> ToolForm:
    """The template's form. Raises RunError R144 where it knows no tools, R145 where it writes calls in a form that is
    none of FORMS."""
    tools = [{"type": "function", "function": _function(NAME, ARGUMENT)}]
    asked: list[Message] = [{"role": "user", "content": QUESTION}]
    try:
        knows = NAME in template.render(asked, tools=tools)
    except RunError:
        knows = False
    if not knows:
        raise RunError(NO_TOOLS, f"{template.source} knows no tools, so this model can be offered none")
    call = {"name": NAME, "arguments": {ARGUMENT: 1}}
    called = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": CALL_ID, "type": "function", "function": call}],
    }
    try:
        text = template.render([*asked, called], add_generation_prompt=False, tools=tools)
    except RunError:
        text = ""
    answer = text.rpartition(QUESTION)[2]
    for form in FORMS.values():
        found = _as_written(form, answer)
        if found:
            return found
    known = ", ".join(FORMS)
    raise RunError(UNKNOWN_FORM, f"{template.source} writes calls of tools in a form that is none of {known}")


def _function(name: str, argument: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {argument: {"type": "integer", "description": "A number"}}}
    return {"name": name, "description": "What it does", "parameters": {**parameters, "required": [argument]}}


def _as_written(form: ToolForm, text: str) -> ToolForm | None:
    """The form with its space, as `text` has it; None where it has another."""
    start = text.find(form.begin)
    if start >= 0:
        rest = text[start + len(form.begin) :]
    elif form.only_first:
        rest = text[max(text.find("{"), 0) :]
    else:
        return None
    written = rest.lstrip()
    try:
        value, stop = json.JSONDecoder().raw_decode(written)
    except ValueError:
        return None
    call = value[0] if form.listed and isinstance(value, list) and len(value) == 1 else value
    tail = written[stop:]
    closing = tail.lstrip()
    if not (isinstance(call, dict) and call.get("name") == NAME and form.arguments in call):
        return None
    if not closing.startswith(form.end):
        return None
    before = rest[: len(rest) - len(written)]
    return replace(form, before=before, after=tail[: len(tail) - len(closing)] if form.end else "")


class Shown:
    """A tokenizer that shows, of the tokens that decoding hides, those that stand for these texts."""

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        tokens = {text: token_of(tokenizer, text) for text in texts if text}
        self._texts: Mapping[int, str] = {
            token: text for text, token in tokens.items() if token is not None and tokenizer.hidden(token)
        }

    def decode(self, ids: Sequence[int]) -> str:
        pieces, start = list[str](), 0
        for index, token in enumerate(ids):
            if token in self._texts:
                pieces += [self._tokenizer.decode(ids[start:index]), self._texts[token]]
                start = index + 1
        return "".join([*pieces, self._tokenizer.decode(ids[start:])])

    def hidden(self, token: int) -> bool:
        return token not in self._texts and self._tokenizer.hidden(token)

    def byte(self, token: int) -> int | None:
        return self._tokenizer.byte(token)


def token_of(tokenizer: Tokenizer, text: str) -> int | None:
    """The one token that stands for `text` wherever it is; None where there is none."""
    ids = tokenizer.encode(text, continued=True)
    return ids[0] if len(ids) == 1 and tokenizer.text_of(ids[0]) == text else None


def codec_of(tokenizer: Tokenizer, form: ToolForm | None) -> Codec:
    """What reads an answer that may have calls in that form."""
    return tokenizer if form is None else Shown(tokenizer, (form.begin, form.end))
