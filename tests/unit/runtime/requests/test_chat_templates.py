"""Chat templates: the strings of transformers, and what is refused by name."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from chat_templates import CHATML, FAMILIES, LLAMA3
from small_tokenizers import byte_level
from transformers import PreTrainedTokenizerFast

from llrun.errors import RunError
from llrun.requests.chat_template import ChatTemplate, Limits

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
SYSTEM = {"role": "system", "content": "Answer in  one word. "}
TALK = [
    {"role": "user", "content": " What is “2 + 2”?\n<b>é</b> "},
    {"role": "assistant", "content": "<think>\nadd\n</think>\n\nFour.\n", "tool_calls": None},
    {"role": "user", "content": "And 한국 {{ bos_token }}?"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Of a <place>",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
        },
    }
]
CALLS = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": None,
        "reasoning": "look it up",
        "tool_calls": [
            {"type": "function", "function": {"name": "weather", "arguments": {"place": "Ulm & <é>"}}}
        ],
    },
    {"role": "tool", "content": "rain"},
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=byte_level(), **TOKENS)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_strings_are_those_of_transformers(family, tokenizer):
    text = FAMILIES[family]
    with ChatTemplate("the test's", {"default": text}, TOKENS) as template:
        for messages in (TALK, [SYSTEM, *TALK], TALK[:1]):
            for prompt in (True, False):
                ours = template.render(messages, add_generation_prompt=prompt)
                assert ours == tokenizer.apply_chat_template(
                    messages, chat_template=text, tokenize=False, add_generation_prompt=prompt
                )


@pytest.mark.parametrize("family", ["qwen", "llama3"])
def test_tools_and_variables_are_those_of_transformers(family, tokenizer):
    text = FAMILIES[family]
    with ChatTemplate("the test's", {"default": text}, TOKENS) as template:
        assert template.render(CALLS[:1], variables={"self": 1, "context": 2, "messages": 3})
        for more in ({}, {"enable_thinking": False, "date_string": "1 May"}):
            ours = template.render(CALLS, tools=TOOLS, variables=more)
            theirs = tokenizer.apply_chat_template(
                CALLS, chat_template=text, tokenize=False, add_generation_prompt=True, tools=TOOLS, **more
            )
            assert ours == theirs
            assert "Ulm & <é>" in ours


def test_tools_have_a_template_of_their_own_where_there_is_one():
    with ChatTemplate("the test's", {"default": "plain", "tool_use": "tools"}) as template:
        assert template.render(TALK) == "plain"
        assert template.render(TALK, tools=TOOLS) == "tools"
        assert template.render(TALK, tools=[]) == "plain"


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("{% for message in messages %}", "R131", "line 1"),
        ("{{ 'a' | nonsense }}", "R133", "nonsense"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "R133", "without end"),
        ("{{ raise_exception('only two roles') }}", "R132", "only two roles"),
        ("{{ messages[0].content.nothing.at_all }}", "R133", "nothing"),
        ("{{ 1 + 'a' }}", "R133", "TypeError"),
        ("{{ 1 // 0 }}", "R133", "ZeroDivisionError"),
        ("{{ messages.append(1) }}", "R133", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "R133", "unsafe"),
        ("{{ cycler.__init__.__globals__ }}", "R133", "unsafe"),
        ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", "R133", "__class__"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "R133", "without end"),
        ("{% for i in range(99999) %}{{ 'a' * 99 }}{% endfor %}", "R134", "more than 1048576 characters"),
        ("{{ 'a' * 10 ** 10 }}", "R134", "memory"),
        ("{% for i in range(9999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "R134", "longer than"),
        ("{{ 7 ** (10 ** 8) }}", "R134", "longer than"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named_and_the_next_works(text, code, words):
    limits = Limits(seconds=1.0, memory_bytes=256 << 20, characters=1 << 20)
    chosen = "{% if messages | length == 3 %}" + text + "{% else %}fine{% endif %}"
    with ChatTemplate("the file t", {"default": chosen}, TOKENS, limits) as template:
        with pytest.raises(RunError, match=words) as caught:
            template.render(TALK)
        assert caught.value.code == code
        assert "the file t" in caught.value.message
        if code != "R131" and "((" not in text and "7 **" not in text:  # these stop it at its beginning
            assert template.render(TALK[:1]) == "fine"


def test_a_fault_is_seen_before_anything_is_rendered():
    with (
        ChatTemplate("the file t", {"default": "{% if %}"}) as template,
        pytest.raises(RunError, match="line 1"),
    ):
        template.check()
    with ChatTemplate("the file t", {"default": CHATML}) as template:
        template.check()


def refused(template: ChatTemplate) -> RunError:
    """The error of reading it."""
    with pytest.raises(RunError) as caught:
        template.check()
    return caught.value


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    (tmp_path / "jinja2.py").write_text("raise ImportError('none here')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with ChatTemplate("the file t", {"default": CHATML}) as template:
        caught = refused(template)
    assert "pip install" in caught.message
    assert caught.code == "R130"


def test_an_old_package_is_named(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("jinja2", "jinja2/ext", "jinja2/sandbox"):
        (tmp_path / name).mkdir()
    (tmp_path / "jinja2/__init__.py").write_text("__version__ = '3.1.5'\n")
    (tmp_path / "jinja2/ext/__init__.py").write_text("loopcontrols = None\n")
    (tmp_path / "jinja2/sandbox/__init__.py").write_text("ImmutableSandboxedEnvironment = None\n")
    with ChatTemplate("the file t", {"default": CHATML}) as template:
        assert "3.1.5 is too old" in refused(template).message


def test_an_answer_to_an_interrupted_call_is_nobodys(monkeypatch):
    with ChatTemplate("the test's", {"default": CHATML}) as template:
        template.check()
        with monkeypatch.context() as patch:
            patch.setattr("select.select", interrupted)
            with pytest.raises(KeyboardInterrupt):
                template.render(TALK)
        assert "<only>" in template.render([{"role": "user", "content": "<only>"}])


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_several_threads_each_have_their_own():
    texts: dict[int, str] = {}
    with ChatTemplate("the test's", {"default": CHATML}) as template:

        def ask(number: int) -> None:
            texts[number] = template.render([{"role": "user", "content": f"<{number}>"}])

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(f"<{number}>" in texts[number] for number in range(8))


def test_the_process_ends_and_sees_no_keys_of_ours(monkeypatch):
    monkeypatch.setenv("SECRET_OF_OURS", "hidden")
    template = ChatTemplate("the test's", {"default": LLAMA3}, TOKENS)
    template.render(TALK)
    process = template._process
    assert process is not None
    assert b"SECRET_OF_OURS" not in Path(f"/proc/{process.pid}/environ").read_bytes()
    template.close()
    assert process.poll() is not None
    template.close()
