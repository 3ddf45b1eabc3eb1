"""Calls of functions: the form that a template has them in, told from text as it comes, and allowed by a grammar."""

from __future__ import annotations

import chat_templates
import numpy as np
import pytest
import small_tokenizers

from llrun.errors import RunError
from llrun.requests.chat_template import ChatTemplate
from llrun.requests.grammars import Grammars
from llrun.requests.stream import Stream
from llrun.requests.tokenizer import Tokenizer
from llrun.requests.tool_calls import Call, CallReader
from llrun.requests.tool_forms import HERMES, LLAMA, MISTRAL, codec_of, tool_form
from llrun.requests.tool_grammar import Calls, Function, tool_grammar

TEMPLATES = {
    "hermes": chat_templates.QWEN,
    "mistral": chat_templates.MISTRAL_TOOLS,
    "llama": chat_templates.LLAMA_TOOLS,
}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
NUMBER = {
    "type": "object",
    "properties": {"x": {"type": "integer"}},
    "required": ["x"],
    "additionalProperties": False,
}
FUNCTIONS = (Function("f", NUMBER), Function("g", {}))
ONE = {
    "hermes": '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>',
    "mistral": '[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}}]',
    "llama": '{"name": "f", "parameters": {"x": 1}}',
}
TWO = {
    "hermes": ONE["hermes"] + "\n" + ONE["hermes"].replace('"x": 1', '"x": 22'),
    "mistral": ONE["mistral"][:-1] + ', {"name": "f", "arguments": {"x": 22}}]',
}


def form_of(kind: str, text: str | None = None):
    with ChatTemplate("the template", {"default": text or TEMPLATES[kind]}, TOKENS) as template:
        return tool_form(template)


@pytest.fixture(scope="module")
def forms():
    return {kind: form_of(kind) for kind in TEMPLATES}


def test_the_form_is_that_of_the_template(forms):
    hermes, mistral, llama = forms["hermes"], forms["mistral"], forms["llama"]
    assert (hermes.begin, hermes.before, hermes.after, hermes.end) == (
        "<tool_call>",
        "\n",
        "\n",
        "</tool_call>",
    )
    assert (mistral.begin, mistral.before, mistral.listed) == ("[TOOL_CALLS]", " ", True)
    assert (llama.arguments, llama.only_first) == ("parameters", True)


@pytest.mark.parametrize(
    ("text", "code"),
    [(chat_templates.CHATML, "R144"), (chat_templates.GEMMA, "R144"), (chat_templates.XML_TOOLS, "R145")],
)
def test_a_template_without_tools_or_with_another_form_says_so(text, code):
    with pytest.raises(RunError) as caught:
        form_of("", text)
    assert caught.value.code == code


def read(form, text: str, size: int, cut: bool = False) -> tuple[str, list[tuple[str, str]]]:
    """Text and calls of an answer that comes in pieces; no piece may hold a part of a call."""
    reader, found = CallReader(form), list[str | Call]()
    for start in range(0, len(text), size):
        found += reader.push(text[start : start + size])
    found += reader.finish(cut)
    calls = [(each.name, each.arguments) for each in found if isinstance(each, Call)]
    return "".join(each for each in found if isinstance(each, str)), calls


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("kind", TEMPLATES)
def test_text_and_calls_are_told_apart_however_they_come(forms, kind, size):
    form, one, called = forms[kind], ONE[kind], ("f", '{"x": 1}')
    assert read(form, one, size) == ("", [called])
    assert read(form, "\n" + one + "\n", size) == ("", [called])
    for text in (
        "",
        "hello",
        " a < b, [x], {y} \n",
        "<tool",
        "[TOOL_CALL",
        '{"nam',
        "{ \n",
        '{"names": 1}',
        "1 {",
    ):
        assert read(form, text, size) == (text, [])
    if kind in TWO:
        assert read(form, TWO[kind], size) == ("", [called, ("f", '{"x": 22}')])
        assert read(form, "So:\n\n" + one, size) == ("So:", [called])
    else:
        assert read(form, "<|python_tag|>" + one, size) == ("", [called])
        assert read(form, "So: " + one, size) == ("So: " + one, [])


@pytest.mark.parametrize("kind", TEMPLATES)
def test_nothing_of_half_a_call_is_text(forms, kind):
    form, one = forms[kind], ONE[kind]
    begun = len(form.begin) if kind != "llama" else len('{"name"')
    for stop in range(begun, len(one) - 1 if kind != "hermes" else one.index("\n</")):
        reader = CallReader(form)
        assert [reader.push(letter) for letter in one[:stop] if letter] == [[]] * stop
        assert reader.finish(cut=True) == []
        assert read(form, one[:stop], 1) == (one[:stop], [])  # the model ended it so: it called nothing


def test_what_looks_like_an_end_among_the_arguments_is_none(forms):
    text = ONE["hermes"].replace('"x": 1', '"x": "</tool_call> é"')
    assert read(forms["hermes"], text, 1) == ("", [("f", '{"x": "</tool_call> é"}')])


def test_ids_are_of_the_length_that_the_template_wants(forms):
    for kind, length in (("mistral", 9), ("hermes", 29)):
        calls = CallReader(forms[kind]).push(TWO[kind])
        assert len({call.id for call in calls}) == 2
        assert all(len(call.id) == length for call in calls)


SPECIAL = {
    "special": (["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>"], ["<think>"]),
    "added": ([], ["<tool_call>", "</tool_call>", "<think>"]),
    "spelled": ([], []),
}


def vocabulary(kind: str) -> tuple[Tokenizer, int]:
    inner = small_tokenizers.KINDS["byte_level"]()
    special, added = SPECIAL[kind]
    inner.add_special_tokens(special)
    inner.add_tokens(added)
    size = inner.get_vocab_size()
    return Tokenizer("tokenizer.json", small_tokenizers.data(inner), size), size


def goes(grammar: str, kind: str, text: str) -> tuple[int, bool]:
    """How many of the text's tokens are allowed, and whether an answer may end there."""
    tokenizer, size = vocabulary(kind)
    [constraint] = Grammars(tokenizer, size, [2]).constraints(grammar, 1)
    ids = tokenizer.encode(text, continued=True)
    for count, token in enumerate(ids):
        if token not in constraint.allowed():
            return count, False
        constraint.take(token)
    return len(ids), bool(np.isin(2, constraint.allowed()))


def is_allowed(grammar: str, kind: str, text: str) -> bool:
    count, may_end = goes(grammar, kind, text)
    return may_end and count == len(vocabulary(kind)[0].encode(text, continued=True))


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("way", TEMPLATES)
def test_a_grammar_allows_text_and_right_calls(forms, way, kind):
    tokenizer, _ = vocabulary(kind)
    may = tool_grammar(Calls(FUNCTIONS), forms[way], tokenizer)
    must = tool_grammar(Calls(FUNCTIONS, must=True), forms[way], tokenizer)
    single = tool_grammar(Calls(FUNCTIONS, several=False), forms[way], tokenizer)
    data = tool_grammar(Calls(FUNCTIONS, schema={"type": "boolean"}), forms[way], tokenizer)
    one, wrong = ONE[way], ONE[way].replace('"f"', '"h"')
    for grammar in (may, must, single, data):
        assert is_allowed(grammar, kind, one)
        assert not is_allowed(grammar, kind, wrong)
        assert not is_allowed(grammar, kind, one.replace("1", '"1"'))
        assert is_allowed(grammar, kind, "hello <think> {1}") == (grammar in (may, single))
        assert is_allowed(grammar, kind, "true") == (grammar is not must)
    if way in TWO:
        assert is_allowed(may, kind, TWO[way])
        assert is_allowed(must, kind, TWO[way])
        assert not is_allowed(single, kind, TWO[way])
        assert is_allowed(may, kind, "<think> well" + one)
        assert not is_allowed(must, kind, "well" + one)
        assert not is_allowed(may, kind, "<think> well" + wrong)


def test_what_is_not_known_of_a_schema_holds_for_strict_functions_alone(forms):
    tokenizer, size = vocabulary("special")
    odd = {"type": "object", "properties": {"x": {"type": "array", "uniqueItems": True}}}
    worse = {"type": "object", "properties": {"x": {"pattern": "(?=a)b", "type": "string"}}}
    rules = Grammars(tokenizer, size, [2])
    rules.constraints(tool_grammar(Calls((Function("f", odd),)), HERMES, tokenizer), 1)
    with pytest.raises(RunError, match="uniqueItems"):
        rules.constraints(tool_grammar(Calls((Function("f", odd, strict=True),)), HERMES, tokenizer), 1)
    with pytest.raises(RunError, match="look-around"):
        rules.constraints(tool_grammar(Calls((Function("f", worse),)), HERMES, tokenizer), 1)
    loose = Calls((Function("f", worse), Function("g", NUMBER, strict=True))).loose()
    grammar = tool_grammar(loose, HERMES, tokenizer)
    assert is_allowed(grammar, "special", '<tool_call>{"name": "f", "arguments": {"x": "q"}}</tool_call>')
    assert not is_allowed(grammar, "special", '<tool_call>{"name": "g", "arguments": {"x": "q"}}</tool_call>')


@pytest.mark.parametrize("kind", SPECIAL)
def test_tokens_that_decoding_hides_are_read_where_they_mark_a_call(kind):
    tokenizer, _ = vocabulary(kind)
    for form, way in ((HERMES, "hermes"), (MISTRAL, "mistral"), (LLAMA, "llama")):
        text = f"é 한 {ONE[way]}<s>"
        stream = Stream(codec_of(tokenizer, form))
        shown = "".join(stream.push(token) for token in tokenizer.encode(text, continued=True))
        assert shown + stream.finish() == text.removesuffix("<s>")
