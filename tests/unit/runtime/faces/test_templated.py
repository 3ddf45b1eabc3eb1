"""Texts in a chat template or as they are, as the command line says."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_tokenizers
from chat_templates import CHATML
from stored_files import CONFIG, JINJA, stored

from llrun.errors import RunError
from llrun.faces.answering import Given, prompts_of
from llrun.faces.templated import Chatting, Written, written_by
from llrun.requests.tokenizer import Tokenizer

NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}ok"


def refused(source, chatting: Chatting, ids: bool = False) -> RunError:
    with pytest.raises(RunError) as caught, written_by(source, chatting, ids):
        pass
    return caught.value


def test_what_options_cannot_mean(tmp_path):
    source = stored(tmp_path, **{CONFIG: {}})
    for chatting in (Chatting(system="be kind"), Chatting(keep_context=True)):
        error = refused(source, chatting)
        assert error.code == "R108"
        assert "came with none" in error.message
    assert "token ids" in refused(source, Chatting(system="be kind"), ids=True).message
    assert "--raw leaves it out" in refused(source, Chatting(system="be kind", raw=True)).message
    assert "not both" in refused(source, Chatting(Path("some"), raw=True)).message


def test_faults_are_seen_before_anything_starts(tmp_path):
    source = stored(tmp_path, **{JINJA: NO_SYSTEM.encode()})
    with written_by(source, Chatting(), ids=False) as template:
        assert template is not None
    assert refused(source, Chatting(system="be kind")).code == "R132"
    own = tmp_path / "own"
    own.write_text("{% if %}")
    assert refused(source, Chatting(own)).code == "R131"
    for chatting, ids in ((Chatting(raw=True), False), (Chatting(), True)):
        with written_by(source, chatting, ids) as template:
            assert template is None


@pytest.mark.parametrize("system", [None, "be kind"])
def test_prompts_are_asked_in_the_template(tmp_path, system):
    source = stored(tmp_path, **{JINJA: CHATML.encode()})
    inner = small_tokenizers.byte_level()
    inner.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = Tokenizer("the test's", small_tokenizers.data(inner), 1000)
    chatting = Chatting(system=system)
    with written_by(source, chatting, ids=False) as template:
        written = Written(template, chatting)
        (prompt,) = prompts_of(Given(("ab",), ()), tokenizer, written)
        assert written.ends(tokenizer) == set(tokenizer.encode("<|im_end|>"))
    first = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    asked = f"{first}<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.ids == tokenizer.encode(asked)
