"""What a request needs before it is submitted, and may take a while: token ids, and what answers are held to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llrun.errors import RunError
from llrun.faces.server.asked import Asked, Prompt
from llrun.faces.server.faults import ApiError, invalid, of_run_error
from llrun.requests.chat_template import ChatTemplate
from llrun.requests.constraint import Constraint
from llrun.requests.dialogue import turn_ends
from llrun.requests.grammars import REFUSED_GRAMMAR, Grammars, json_grammar
from llrun.requests.tokenizer import Tokenizer
from llrun.requests.tool_forms import ToolForm, tool_form
from llrun.requests.tool_grammar import Calls, tool_grammar
from llrun.schema import ModelInfo


@dataclass(frozen=True)
class Prepared:
    """`ids`: of each prompt. `ends`: tokens that end an answer besides the model's. `constraints`: what each answer is
    held to, in their order; empty where they are free. `form`: how calls are written where an answer may have some."""

    ids: Sequence[Sequence[int]]
    ends: frozenset[int] = frozenset()
    constraints: Sequence[Constraint] = ()
    form: ToolForm | None = None


class Preparing:
    """For one model. `template` None: it came with none, and chats are refused. May be used from several threads."""

    def __init__(self, template: ChatTemplate | None, tokenizer: Tokenizer, model: ModelInfo) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self._ends = turn_ends(template, tokenizer) if template else frozenset[int]()
        self._form: ToolForm | RunError | None = _form_of(template) if template else None
        self._grammars = Grammars(tokenizer, model.vocab_size, self._ends.union(model.eos_token_ids))

    def completion(self, prompts: Sequence[Prompt]) -> Prepared:
        """Raises ApiError."""
        try:
            return Prepared(
                [self._tokenizer.encode(each) if isinstance(each, str) else each for each in prompts]
            )
        except RunError as error:
            raise of_run_error(error) from error

    def chat(self, messages: Sequence[Mapping[str, Any]], asked: Asked) -> Prepared:
        """Raises ApiError."""
        if self._template is None:
            message = "this model came with no chat template: use /v1/completions"
            raise invalid(message, "messages", "no_chat_template")
        offer = asked.offer
        called = any(message["role"] == "tool" or "tool_calls" in message for message in messages)
        if isinstance(self._form, RunError) and (offer or called):
            raise invalid(self._form.message, "tools" if offer else "messages", self._form.code)
        try:
            ids = self._tokenizer.encode(
                self._template.render(messages, tools=offer.tools if offer else None)
            )
        except RunError as error:
            raise of_run_error(error) from error
        form = self._form if offer and isinstance(self._form, ToolForm) else None
        return Prepared([ids], self._ends, self._held_to(asked, form), form)

    def _held_to(self, asked: Asked, form: ToolForm | None) -> Sequence[Constraint]:
        offer = asked.offer
        try:
            if not (offer and form):
                return () if asked.schema is None else self._read(json_grammar(asked.schema), asked)
            calls = Calls(offer.functions, offer.must, offer.several, asked.schema)
            try:
                return self._read(tool_grammar(calls, form, self._tokenizer), asked)
            except RunError as error:
                if error.code != REFUSED_GRAMMAR:
                    raise
            return self._read(tool_grammar(calls.loose(), form, self._tokenizer), asked)
        except RunError as error:
            raise _of_grammar(error, "tools" if offer else "response_format") from error

    def _read(self, grammar: str, asked: Asked) -> Sequence[Constraint]:
        return self._grammars.constraints(grammar, asked.choices)


def _form_of(template: ChatTemplate) -> ToolForm | RunError:
    try:
        return tool_form(template)
    except RunError as error:
        return error


def _of_grammar(error: RunError, param: str) -> ApiError:
    return invalid(error.message, param, error.code)
