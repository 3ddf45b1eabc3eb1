"""A conversation in a chat template: which tokens each message adds to what the caches hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llrun.errors import RunError
from llrun.requests.chat_template import ChatTemplate, Message
from llrun.requests.request import check_ids, tokens_allowed
from llrun.requests.tokenizer import Tokenizer
from llrun.schema import ModelInfo

ANSWER_TOKENS = 1024  # of an answer at most, where nothing else is asked for
USER, ASSISTANT, SYSTEM = "user", "assistant", "system"


@dataclass(frozen=True)
class Ask:
    """What is to be asked. `ids`: the tokens that are new; all of them when `fresh`: on a sequence of its own.
    `messages`: those that the ids are of, and `text`: that of the whole conversation up to the answer. `forgotten`: how
    many messages were left out, being too much for the context. `tokens`: to produce, None: up to a default."""

    ids: Sequence[int]
    tokens: int | None
    messages: Sequence[Message] = ()
    text: str = ""
    fresh: bool = False
    forgotten: int = 0


class Dialogue:
    """Messages, and what of their text the caches hold.

    The caches hold what the model was given and what it said, token by token. The text of all messages with the next
    one goes on from there, as a rule: then only its rest is new. A template that writes what was said in another way
    (without the thoughts of earlier answers, say) has all computed again, on a new sequence.

    `keep_context`: what does not fit is refused, where else the oldest messages are left out, the system's never.
    """

    def __init__(
        self, template: ChatTemplate, tokenizer: Tokenizer, model: ModelInfo, keep_context: bool = False
    ) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self._model = model
        self._keep_context = keep_context
        self.ends = turn_ends(template, tokenizer)
        self.messages: list[Message] = []
        self._prompt = ""  # the text that the newest answer follows
        self._answer: str | None = None  # that answer, as it was shown; None: the caches hold nothing
        self._end: int | None = None  # the token that ended it

    def begin(self, messages: Sequence[Message]) -> None:
        """Go on from these; nothing of them is in the caches."""
        self.messages = list(messages)
        self._answer = None

    def ask(self, said: str, wanted: int | None, used: int) -> Ask:
        """The user's next message, after `used` tokens in the caches. Raises RunError for what cannot be asked;
        nothing is changed by that."""
        message: Message = {"role": USER, "content": said}
        messages = [*self.messages, message]
        text = self._template.render(messages)
        enough = wanted or min(ANSWER_TOKENS, self._model.shapes.context // 4)
        rest = self._rest(text) if used else None
        if rest is not None and (self._keep_context or self._fits(used + len(rest) + enough)):
            return Ask(rest, self._allowed(rest, wanted, used), [message], text)
        ids = self._tokenizer.encode(text)
        while not (self._keep_context or self._fits(len(ids) + enough)):
            left = _without_oldest(messages)
            if not left:
                break
            messages, text = left, self._template.render(left)
            ids = self._tokenizer.encode(text)
        forgotten = len(self.messages) + 1 - len(messages)
        return Ask(ids, self._allowed(ids, wanted, 0), messages, text, True, forgotten)

    def asked(self, ask: Ask) -> None:
        """It was taken: its messages are part of the conversation."""
        self.messages = [*([] if ask.fresh else self.messages), *ask.messages]
        self._prompt, self._answer, self._end = ask.text, "", None

    def answered(self, text: str, tokens: Sequence[int]) -> None:
        """The model's answer, be it cut off: its text, and its tokens."""
        self.messages.append({"role": ASSISTANT, "content": text})
        self._answer = text
        last = tokens[-1] if tokens else None
        self._end = last if last in (*self._model.eos_token_ids, *self.ends) else None

    def _fits(self, tokens: int) -> bool:
        return tokens <= self._model.shapes.context

    def _allowed(self, ids: Sequence[int], wanted: int | None, used: int) -> int:
        check_ids(ids, self._model)
        allowed = tokens_allowed(len(ids), wanted, self._model, used)
        if wanted is None:
            allowed = min(ANSWER_TOKENS, self._model.shapes.context - used - len(ids))
        return allowed

    def again(self, messages: Sequence[Message], ids: Sequence[int], tokens: int | None) -> Ask:
        """What was asked in an earlier run, when this dialogue was as it is now."""
        return Ask(ids, tokens, messages, self._template.render([*self.messages, *messages]))

    def _rest(self, whole: str) -> Sequence[int] | None:
        """The tokens of `whole` after what the caches hold; None where it does not go on from there."""
        if self._answer is None or not whole.startswith(self._prompt):
            return None
        after = whole[len(self._prompt) :]
        answer = self._answer.strip()
        blank = len(after) - len(after.lstrip())
        if after.startswith(self._answer):
            held = len(self._answer)
        elif after.startswith(answer, blank):  # a template may leave out the space around an answer
            held = blank + len(answer)
        else:
            return None
        end = self._tokenizer.text_of(self._end) if self._end is not None else ""
        if after.startswith(end, held):
            held += len(end)
        start = len(self._prompt) + held
        before, ids = self._tokenizer.encode(whole[:start]), self._tokenizer.encode(whole)
        if ids[: len(before)] == before:
            return ids[len(before) :]
        return self._tokenizer.encode(whole[start:], continued=True)


def turn_ends(template: ChatTemplate, tokenizer: Tokenizer) -> frozenset[int]:
    """The special token that the template writes after an answer, which ends one though no file of the model may say
    so: none where it writes no such token, or refuses the conversation that this is seen by."""
    mark = "An answer"
    seen: list[Message] = [{"role": USER, "content": "A question"}, {"role": ASSISTANT, "content": mark}]
    try:
        text = template.render(seen, add_generation_prompt=False)
        after = tokenizer.encode(text.rpartition(mark)[2].lstrip(), continued=True)
    except RunError:
        return frozenset()
    return frozenset(token for token in after[:1] if tokenizer.hidden(token))


def _without_oldest(messages: Sequence[Message]) -> list[Message]:
    """Without the oldest question and its answers; empty when the newest question is all that would be left out."""
    system = [message for message in messages[:1] if message["role"] == SYSTEM]
    rest = messages[len(system) :]
    next_question = next((i for i, message in enumerate(rest) if i and message["role"] == USER), None)
    return [] if next_question is None else [*system, *rest[next_question:]]
