"""Where a chat template comes from."""

from __future__ import annotations

from pathlib import Path

import pytest
from stored_files import CONFIG, JINJA, MAP, OLDER, stored

from llrun.device.slice import StoredSlice
from llrun.errors import RunError
from llrun.faces.template_files import read_chat_template

ASKED = [{"role": "user", "content": "a"}]
SHOWS_TOKENS = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}"


def text_by(source: StoredSlice, own: Path | None = None, **more: object) -> str:
    template = read_chat_template(source, own)
    assert template is not None
    with template:
        return template.render(ASKED, **more)


def test_the_newest_file_counts(tmp_path):
    files: dict[str, object] = {CONFIG: {"chat_template": "config"}}
    for number, (name, content) in enumerate(
        (("", b""), (OLDER, {"chat_template": "older"}), (JINJA, b"jinja"))
    ):
        if name:
            files[name] = content
        folder = tmp_path / str(number)
        folder.mkdir()
        assert text_by(stored(folder, **files)) == ("config", "older", "jinja")[number]
    own = tmp_path / "own"
    own.write_text("{{ messages[0].content }}")
    assert text_by(stored(tmp_path, **files), own) == "a"


def test_a_model_without_one_has_none(tmp_path):
    assert read_chat_template(stored(tmp_path, **{CONFIG: {"eos_token": "x"}})) is None


def test_tokens_are_read_from_both_files(tmp_path):
    files = {
        CONFIG: {
            "chat_template": SHOWS_TOKENS,
            "bos_token": {"content": "<s>", "lstrip": False},
            "pad_token": None,
        },
        MAP: {"bos_token": "<old>", "eos_token": {"content": "</s>"}},
    }
    assert text_by(stored(tmp_path, **files)) == "<s>|</s>|"


def test_several_templates_by_name(tmp_path):
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    source = stored(tmp_path, **{CONFIG: {"chat_template": named}})
    assert text_by(source) == "plain"
    assert text_by(source, tools=[{"type": "function"}]) == "tools"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (CONFIG, {"chat_template": 7}, "neither a text"),
        (CONFIG, {"chat_template": [{"name": "other", "template": "x"}]}, "neither a text"),
        (CONFIG, {"chat_template": [{"name": "default", "template": 7}]}, "neither a text"),
        (CONFIG, {"chat_template": [{"name": ["default"], "template": "x"}]}, "neither a text"),
        (JINJA, b"\xff", "not UTF-8"),
        (JINJA, b"a" * ((1 << 20) + 1), "more than 1048576 bytes"),
    ],
)
def test_what_is_no_template_is_named(tmp_path, name, content, words):
    with pytest.raises(RunError, match=words) as caught:
        read_chat_template(stored(tmp_path, **{name: content}))
    assert caught.value.code == "R131"


def test_an_own_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(RunError, match=r"--chat-template .*missing cannot be read: No such file"):
        read_chat_template(stored(tmp_path), tmp_path / "missing")
