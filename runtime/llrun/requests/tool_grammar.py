"""The grammar of answers that may or must call functions, in the form of a chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llrun.requests.grammars import bounded
from llrun.requests.tokenizer import Tokenizer
from llrun.requests.tool_forms import ToolForm, token_of

ANYTHING = "TEXT: /(.|\\n)+/"


@dataclass(frozen=True)
class Function:
    """`parameters`: the JSON schema of its arguments, an object. `strict`: whether all of it must hold; else what the
    grammar's reader does not know of it is left out."""

    name: str
    parameters: Mapping[str, Any]
    strict: bool = False


@dataclass(frozen=True)
class Calls:
    """`functions`: those that may be called. `must`: an answer calls one at least, else it may be text. `several`: more
    than one. `schema`: of an answer that calls none, None where that is any text."""

    functions: tuple[Function, ...]
    must: bool = False
    several: bool = True
    schema: Mapping[str, Any] | None = None

    def loose(self) -> Calls:
        """With any object as arguments of what is not strict."""
        anything = {"type": "object"}
        functions = (each if each.strict else replace(each, parameters=anything) for each in self.functions)
        return replace(self, functions=tuple(functions))


def tool_grammar(calls: Calls, form: ToolForm, tokenizer: Tokenizer) -> str:
    """In llguidance's dialect of Lark."""
    write = _Writer(form, tokenizer)
    rules = [write.one_call(number, each) for number, each in enumerate(calls.functions)]
    call = f"call: {' | '.join(f'call_{number}' for number in range(len(rules)))}"
    answer = [] if calls.schema is None else [f"answer: %json {json.dumps(bounded(calls.schema))}"]
    return "\n".join([*write.start(calls), call, *rules, *answer])


class _Writer:
    def __init__(self, form: ToolForm, tokenizer: Tokenizer) -> None:
        self._form = form
        self._tokenizer = tokenizer
        self._begin = self._literal(form.begin)
        own = {token_of(tokenizer, each) for each in (form.begin, form.end) if each}
        # Tokens that are shown and yet no text for llguidance, such as what encloses thoughts.
        shown = [str(token) for token in tokenizer.added_texts() if token not in own]
        self._shown = f"<[{','.join(shown)}]>" if shown else ""

    def start(self, calls: Calls) -> list[str]:
        """The rule of a whole answer, and of what is around calls in it."""
        form = self._form
        if form.only_first:
            return self._start_of_first(calls)
        more = '(", " call)*' if calls.several else ""
        inside = f'"[" call {more} "]"' if form.listed else "call"
        end = self._literal(form.after) + " " + self._literal(form.end)
        group = f"{self._literal(form.before)} {inside} {end}"
        repeated = calls.several and not form.listed
        if calls.must or calls.schema is not None:
            line = '("\\n" group)*' if repeated else ""
            start = f"start: group {line}{'' if calls.must else ' | answer'}"
            return [start, f"group: {self._begin} {group}"]
        if self._begins_with_token:
            opened = f"text {self._begin}"
            texts = [f"text: {self._text()}", ANYTHING]
        else:
            opened = f"{self._thoughts()} opened"
            texts = [f"text: {self._text()}", ANYTHING, f"opened[lazy]: /(.|\\n)*/ {self._begin}"]
        start = "start: group* text" if repeated else "start: group | text"
        return [start, f"group: {opened} {group}", *texts]

    def _start_of_first(self, calls: Calls) -> list[str]:
        optional = f"{self._begin}? " if self._begins_with_token else ""
        if calls.must or calls.schema is not None:
            return [f"start: {optional}call{'' if calls.must else ' | answer'}"]
        # What begins as a call goes on as one.
        return [f"start: {optional}call | text", f"text: {self._text()}", ANYTHING]

    def one_call(self, number: int, function: Function) -> str:
        """A rule named after its number. The words are those of templates, a space behind each comma and colon."""
        parameters = {**function.parameters, "type": "object"}
        schema = json.dumps(bounded(parameters, lenient=not function.strict))
        head = f'{{"name": {json.dumps(function.name)}, {json.dumps(self._form.arguments)}: '
        rule = f"call_{number}"
        if not self._form.only_first:
            return f"{rule}: {json.dumps(head)} %json {schema} {json.dumps('}')}"
        begin = '{"name": '
        opened = f"{rule}_begin[lazy]: {json.dumps(begin)}"
        return f"{opened}\n{rule}: {rule}_begin {json.dumps(head[len(begin) :])} %json {schema} {json.dumps('}')}"

    @property
    def _begins_with_token(self) -> bool:
        return token_of(self._tokenizer, self._form.begin) is not None

    def _literal(self, text: str) -> str:
        token = token_of(self._tokenizer, text) if text.strip() else None
        return f"<[{token}]>" if token is not None else json.dumps(text) if text else ""

    def _text(self) -> str:
        """Any text."""
        return f"(TEXT | {self._shown})*" if self._shown else "TEXT?"

    def _thoughts(self) -> str:
        """Text up to the last of the tokens that are shown and yet no text."""
        return f"(TEXT? {self._shown})*" if self._shown else ""
