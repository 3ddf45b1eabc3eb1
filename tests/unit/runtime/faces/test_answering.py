"""What is asked: which prompt an error is about, a tokenizer that cannot be read, what a terminal is shown."""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
from pathlib import Path

import msgspec
import numpy_model
import pytest
import small_tokenizers

from llrun.device.slice import StoredSlice
from llrun.errors import RunError
from llrun.faces import visible
from llrun.faces.answering import (
    Given,
    answer_all,
    check_prompts,
    lines_of_stdin,
    prompts_of,
    tokenizer_for_ids,
)
from llrun.faces.console import Console
from llrun.faces.printer import Wanted
from llrun.faces.tokenizer_files import TOKENIZER, read_tokenizer
from llrun.faces.where import Where
from llrun.head.options import Balancing
from llrun.requests.sampling import Sampling
from llrun.schema import FileEntry
from llrun.wire.transport import Tcp

NO_LIMIT = Wanted(None, Sampling(), ())
RECORD = numpy_model.record("d0", ["d0"])


def stdin_of(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def stored_with(folder: Path, data: bytes) -> StoredSlice:
    """A slice whose tokenizer.json has `data`, and is as its record says."""
    (folder / "tokenizer").mkdir()
    (folder / TOKENIZER).write_bytes(data)
    entry = FileEntry(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    return StoredSlice(
        folder, "d0", None, msgspec.structs.replace(RECORD, files={**RECORD.files, TOKENIZER: entry})
    )


# --- which prompt ---


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        ([[]], "--prompt-ids: the prompt is empty"),
        ([[1], [], [2]], "--prompt-ids 2 of 3: the prompt is empty"),
        ([[1], [2], [3, 97]], "--prompt-ids 3 of 3: token 1 of the prompt is 97"),
        ([[1], [1] * 256], "--prompt-ids 2 of 2: 256 prompt tokens"),
    ],
)
def test_the_prompt_that_is_wrong_is_named(ids, told):
    with pytest.raises(RunError, match=re.escape(told)):
        check_prompts(prompts_of(Given((), ids), None), NO_LIMIT, RECORD.model)


def test_a_text_that_is_wrong_is_named(tmp_path, monkeypatch):
    plain = small_tokenizers.begin_with(small_tokenizers.gemma(), "$A")
    plain.normalizer = small_tokenizers.normalizers.Strip()
    tokenizer = read_tokenizer(stored_with(tmp_path, small_tokenizers.data(plain)))
    with pytest.raises(RunError, match="--prompt 2 of 2: the prompt is not UTF-8 text"):
        prompts_of(Given(("DE", "D\udcff"), ()), tokenizer)
    with pytest.raises(RunError, match="--prompt 1 of 2: the prompt is empty"):
        check_prompts(prompts_of(Given(("", "DE"), ()), tokenizer), NO_LIMIT, RECORD.model)
    stdin_of("<s>\n\n한\n".encode(), monkeypatch)  # whose id is beyond the model's 97
    with pytest.raises(RunError, match=r"line 3 of standard input: .*no tokenizer for this model"):
        prompts_of(Given((), ()), tokenizer)


def test_lines_end_at_newlines_alone(monkeypatch):
    stdin_of("a\u2028b\x0cc\x85d\r\n \n\ne".encode(), monkeypatch)
    assert lines_of_stdin() == [
        ("line 1 of standard input", "a\u2028b\x0cc\x85d"),
        ("line 4 of standard input", "e"),
    ]


# --- a tokenizer that cannot be read ---


def test_token_ids_need_no_tokenizer(tmp_path, capsys):
    stored = stored_with(tmp_path, b'{"model": {"type": "Unheard"}}')
    assert tokenizer_for_ids(stored, NO_LIMIT, Console(quiet=False)) is None
    said = capsys.readouterr().err
    assert said.startswith("Tokens are shown as ids, without their text: ")
    assert f"{tmp_path / TOKENIZER} is no tokenizer for this model" in said
    assert said.count("\n") == 1


def test_text_needs_one(tmp_path):
    stored = stored_with(tmp_path, b'{"model": {"type": "Unheard"}}')
    where = Where(local=False, peers={}, verify=True, timeout_s=1.0, transport=Tcp())
    for given, wanted in ((Given(("ab",), ()), NO_LIMIT), (Given((), ([1],)), Wanted(1, Sampling(), ("a",)))):
        with pytest.raises(RunError) as refused:
            answer_all(stored, where, wanted, given, False, Console(quiet=False), Balancing(), None)
        assert refused.value.code == "R109"


def test_a_tokenizer_that_was_changed_is_refused_whatever_it_is_for(tmp_path):
    stored = stored_with(tmp_path, b"{}")
    (tmp_path / TOKENIZER).write_bytes(b"[]")
    with pytest.raises(RunError, match="damaged"):
        tokenizer_for_ids(stored, NO_LIMIT, Console(quiet=False))


# --- what a terminal is shown ---

HOSTILE = "a\x1b[2J\x07\x9b31m\x7f\x00b\tc\nd\re"


def test_messages_are_a_line_without_control_characters(capsys):
    Console(quiet=False).note(f"{HOSTILE}\u202e\u2028é한")
    said = capsys.readouterr().err
    assert said == "a\\x1b[2J\\x07\\x9b31m\\x7f\\x00b\\tc\\nd\\re\\u202e\\u2028é한\n"


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_answers_keep_newlines_and_tabs_on_a_terminal_and_all_in_a_file(monkeypatch, capsys):
    Console(quiet=False).show(HOSTILE)
    assert capsys.readouterr().out == HOSTILE
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    Console(quiet=False).show(f"{HOSTILE}👩\u200d💻")
    assert screen.getvalue() == "a\\x1b[2J\\x07\\x9b31m\\x7f\\x00b\tc\nd\\re👩\u200d💻"


def test_a_note_within_an_answer_has_a_line_of_its_own_on_a_terminal(monkeypatch, capsys):
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    console = Console(quiet=False)
    for text in ("ab", " c", "d\n", "e"):
        console.show(text)
        console.note("pi was lost")
        console.note("it is back")
    told = "pi was lost\nit is back\n"
    assert screen.getvalue() == f"ab\n{told} c\n{told}d\n{told}e\n{told}"
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    screen.truncate(0)
    screen.seek(0)
    console = Console(quiet=False)  # stderr is elsewhere: the answer stays whole
    console.show("ab")
    console.note("pi was lost")
    console.show(" c")
    assert screen.getvalue() == "ab c"


def test_json_says_the_same_without_control_characters(capsys):
    Console(quiet=True).json({"text": HOSTILE})
    said = capsys.readouterr().out
    assert json.loads(said) == {"text": HOSTILE}
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", said)
    assert visible.json('"é한"') == '"é한"'
