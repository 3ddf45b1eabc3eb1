"""Conversations in a chat template: what is new of each message, what is left out, and what ends an answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import msgspec
import numpy_model
import pytest
import small_tokenizers
from chat_templates import CHATML, FAMILIES

from llrun.errors import RunError
from llrun.requests.chat_template import ChatTemplate
from llrun.requests.dialogue import Ask, Dialogue, turn_ends
from llrun.requests.tokenizer import Tokenizer

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
ENDS = {
    "chatml": "<|im_end|>", "smollm": "<|im_end|>", "qwen": "<|im_end|>",
    "llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "mistral": "</s>",
}  # fmt: skip
ROLES = ["<|im_start|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "[INST]", "[/INST]"]
MODEL = numpy_model.record("d0", ["d0"]).model


def tokenizer_of(kind: str) -> Tokenizer:
    inner = small_tokenizers.KINDS[kind]()
    inner.add_special_tokens([*ROLES, *ENDS.values()])
    return Tokenizer("the test's", small_tokenizers.data(inner), 1000)


@pytest.fixture(scope="module", params=["gemma", "byte_level", "metaspace"])
def tokenizer(request) -> Tokenizer:
    return tokenizer_of(request.param)


class Caches:
    """A dialogue and the tokens that devices would hold."""

    def __init__(self, dialogue: Dialogue) -> None:
        self.dialogue = dialogue
        self.held: list[int] = []

    def say(self, text: str, wanted: int | None = 8) -> Ask:
        ask = self.dialogue.ask(text, wanted, len(self.held))
        self.held = [*([] if ask.fresh else self.held), *ask.ids]
        self.dialogue.asked(ask)
        return ask

    def answer(self, text: str, tokens: list[int]) -> None:
        self.held += tokens
        self.dialogue.answered(text, tokens)


def dialogue_in(text: str, tokenizer: Tokenizer, context: int = 2000, keep: bool = False) -> Dialogue:
    shapes = dataclasses.replace(MODEL.shapes, context=context)
    model = msgspec.structs.replace(MODEL, shapes=shapes, vocab_size=1000, eos_token_ids=())
    template = ChatTemplate("the test's", {"default": text}, NAMES)
    opened.append(template)
    return Dialogue(template, tokenizer, model, keep)


opened: list[ChatTemplate] = []


@pytest.fixture(autouse=True)
def templates_are_closed() -> Iterator[None]:
    """Each has a process of its own."""
    yield
    while opened:
        opened.pop().close()


@pytest.fixture(params=ENDS)
def family(request) -> Iterator[str]:
    return request.param


def end_of(tokenizer: Tokenizer, family: str) -> int:
    return tokenizer.encode(ENDS[family], continued=True)[0]


@pytest.mark.parametrize("ended", [True, False])
def test_the_caches_hold_the_tokens_of_the_whole_conversation(family, tokenizer, ended):
    """An answer that ended itself, and one that was cut off."""
    dialogue = dialogue_in(FAMILIES[family], tokenizer)
    caches = Caches(dialogue)
    end = [end_of(tokenizer, family)] if ended else []
    assert caches.say("ab\nis it?").fresh
    for number in range(3):
        text = " ok ab" if family == "mistral" else "ok ab"
        at = tokenizer.encode(dialogue._prompt)
        whole = tokenizer.encode(dialogue._prompt + text + ENDS[family])
        assert whole[: len(at)] == at
        caches.answer(text, [*whole[len(at) : -1], *end])
        ask = caches.say(f"more {number}")
        assert not ask.fresh
        assert caches.held == tokenizer.encode(dialogue._prompt)
    begins = tokenizer.encode("<s>", continued=True)[0]
    assert caches.held.count(begins) == (
        family in ("llama3", "gemma", "mistral") or tokenizer.encode("ab")[0] == begins
    )


def test_the_space_around_an_answer_is_no_reason_to_begin_again(tokenizer):
    caches = Caches(dialogue_in(FAMILIES["llama3"], tokenizer))
    caches.say("ab")
    caches.answer(" ok \n", tokenizer.encode(" ok \n", continued=True))
    ask = caches.say("b")
    assert not ask.fresh
    assert ask.ids[0] == end_of(tokenizer, "llama3")


def test_thoughts_that_a_template_leaves_out_are_left_out(tokenizer):
    dialogue = dialogue_in(FAMILIES["qwen"], tokenizer)
    caches = Caches(dialogue)
    caches.say("ab")
    said = "<think>\nab\n</think>\n\nok"
    caches.answer(said, tokenizer.encode(said, continued=True))
    assert caches.say("b").fresh
    assert "think" not in dialogue._prompt
    assert caches.held == tokenizer.encode(dialogue._prompt)


@pytest.mark.parametrize("system", [True, False])
def test_the_oldest_messages_go_when_the_context_is_full(system):
    tokenizer = tokenizer_of("byte_level")
    dialogue = dialogue_in(CHATML, tokenizer, context=150)
    first = [{"role": "system", "content": "be kind"}] if system else []
    dialogue.begin(first)
    caches = Caches(dialogue)
    left_out = 0
    for number in range(12):
        ask = caches.say(f"question {number}", None)
        assert ask.fresh == (number == 0 or ask.forgotten > 0)
        assert ask.forgotten % 2 == 0
        left_out += ask.forgotten
        assert len(caches.held) + 37 <= 150
        assert ask.tokens == 150 - len(caches.held)
        caches.answer("ok", tokenizer.encode("ok<|im_end|>", continued=True))
        assert dialogue.messages[: len(first)] == first
        assert len(dialogue.messages) == len(first) + 2 * number + 2 - left_out
    assert left_out > 10
    with pytest.raises(RunError, match="context of 150") as caught:
        caches.say("ab " * 200)
    assert caught.value.code == "R105"
    assert caches.say("ab").ids


def test_context_that_is_kept_is_refused_when_full():
    tokenizer = tokenizer_of("byte_level")
    caches = Caches(dialogue_in(CHATML, tokenizer, context=150, keep=True))
    caches.say("question one is this", None)
    caches.answer("ok", tokenizer.encode("ok<|im_end|>", continued=True))
    with pytest.raises(RunError, match="earlier tokens"):
        caches.say("ab" * 60, None)
    assert not caches.say("ab", None).fresh


def test_what_ends_a_turn(family, tokenizer):
    template = ChatTemplate("the test's", {"default": FAMILIES[family]}, NAMES)
    assert turn_ends(template, tokenizer) == {end_of(tokenizer, family)}


@pytest.mark.parametrize("text", ["{{ messages[-1].content }}\nuser: ", "{{ raise_exception('no') }}"])
def test_a_template_may_end_turns_with_no_token(text, tokenizer):
    assert turn_ends(ChatTemplate("the test's", {"default": text}), tokenizer) == frozenset()


def test_what_a_template_refuses_changes_nothing(tokenizer):
    dialogue = dialogue_in(FAMILIES["gemma"], tokenizer)
    dialogue.begin([{"role": "assistant", "content": "ok"}])
    with pytest.raises(RunError, match="must alternate") as caught:
        dialogue.ask("ab", None, 0)
    assert caught.value.code == "R132"
    assert len(dialogue.messages) == 1
