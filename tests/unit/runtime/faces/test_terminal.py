"""Conversations at a terminal: interrupts, long lines, what is left behind."""

from __future__ import annotations

import hashlib
import re
import time
from pathlib import Path

import pytest
import small_tokenizers
from terminal import END, INTERRUPT, Terminal, at_terminal

SCRIPT = Path(__file__).parents[1] / "chat_here.py"


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    """One of 97 ids that begins texts with <s>, and shows every token."""
    vocabulary = {token: number for number, token in enumerate(small_tokenizers.SPECIAL)}
    for token in [*"ab", *(f"({number})" for number in range(90))]:
        vocabulary[token] = len(vocabulary)
    made = small_tokenizers.Tokenizer(
        small_tokenizers.models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>")
    )
    made.add_special_tokens(small_tokenizers.SPECIAL)
    made.decoder = small_tokenizers.decoders.Fuse()
    path = tmp_path / "tokenizer.json"
    path.write_bytes(small_tokenizers.data(small_tokenizers.begin_with(made, "<s> $A")))
    return path


def answering(terminal: Terminal, line: str) -> None:
    """Type a line at the prompt, and wait for a token of the answer."""
    terminal.until("> ")
    terminal.type(f"{line}\n")
    terminal.until("(")


def ended(terminal: Terminal) -> bool:
    """Whether it has ended as it should, with the terminal as it was."""
    return terminal.exit_code() == 0 and terminal.by_lines() and "Traceback" not in terminal.shown


def test_one_beginning_in_a_conversation(tokenizer):
    with at_terminal(SCRIPT, tokenizer, 0, 20) as terminal:
        for line, count in (("ab", 3), ("ab", 2), ("<s>b", 2), ("/new", None), ("<s>ab", 3)):
            terminal.until("> ")
            terminal.type(f"{line}\n")
            if count:
                terminal.until(f"[{count} prompt tokens")
        terminal.until("> ")
        terminal.type(END)
        assert ended(terminal)


def test_an_interrupt_stops_the_answer_and_the_conversation_goes_on(tokenizer):
    with at_terminal(SCRIPT, tokenizer, 0.05, 100) as terminal:
        answering(terminal, "ab")
        terminal.type(INTERRUPT)
        assert " tokens, stopped); memory" in terminal.until("\n[") + terminal.until("]\n")
        answering(terminal, "b")  # and again: the handler is there for each
        terminal.type(INTERRUPT)
        terminal.until("[1 prompt tokens")
        terminal.until(" tokens, stopped)")
        terminal.until("> ")
        terminal.type(END)
        assert ended(terminal)


def test_an_interrupt_at_the_prompt_ends_it(tokenizer):
    with at_terminal(SCRIPT, tokenizer, 0, 20) as terminal:
        terminal.until("> ")
        time.sleep(0.5)  # the prompt is shown a moment before it is read at
        terminal.type(INTERRUPT)
        assert terminal.exit_code() == 1
        assert terminal.by_lines()
        assert "Traceback" not in terminal.shown


def test_a_second_interrupt_ends_the_program(tokenizer):
    with at_terminal(SCRIPT, tokenizer, 0.5, 100) as terminal:
        answering(terminal, "ab")
        terminal.type(INTERRUPT)
        time.sleep(0.2)  # the first is seen, and the step under way is not over
        terminal.type(INTERRUPT)
        assert terminal.exit_code() == 1
        assert terminal.by_lines()
        assert "Traceback" not in terminal.shown


# --- a session file ---


def answers(shown: str) -> list[str]:
    """The texts of the answers, which are (numbers), a and b alone."""
    return re.findall(r"^[ab(].*$", shown, re.MULTILINE)


def say(terminal: Terminal, line: str) -> None:
    """Type a line, and wait for the end of its answer."""
    terminal.until("> ")
    terminal.type(f"{line}\n")
    terminal.until("]\n")


def test_a_conversation_goes_on_after_its_program_was_killed(tokenizer, tmp_path):
    """Killed in an answer, which is then finished, and at the prompt."""
    path = tmp_path / "talk.session"
    with at_terminal(SCRIPT, tokenizer, 0, 20) as terminal:
        for line in ("ab", "b", "ba"):
            say(terminal, line)
        whole = answers(terminal.shown)
    assert len(set(whole)) == 3
    with at_terminal(SCRIPT, tokenizer, 0.01, 20, path) as terminal:
        say(terminal, "ab")
        answering(terminal, "b")
    with at_terminal(SCRIPT, tokenizer, 0, 20, path) as terminal:
        terminal.until("its conversation of 23 tokens goes on")
        terminal.until("> ")
        assert answers(terminal.shown) == whole[1:2]
    with at_terminal(SCRIPT, tokenizer, 0, 20, path) as terminal:
        terminal.until("its conversation of 44 tokens goes on")
        say(terminal, "ba")
        assert answers(terminal.shown) == whole[2:]
        terminal.until("> ")
        terminal.type("/new\n")
        say(terminal, "ab")
        assert answers(terminal.shown)[1:] == whole[:1]
        terminal.until("> ")
        terminal.type(END)
        assert ended(terminal)


def test_an_answer_that_was_stopped_is_not_finished(tokenizer, tmp_path):
    path = tmp_path / "talk.session"
    with at_terminal(SCRIPT, tokenizer, 0.05, 100, path) as terminal:
        answering(terminal, "ab")
        terminal.type(INTERRUPT)
        terminal.until(" tokens, stopped)")
        answering(terminal, "b")
        terminal.type(INTERRUPT)
        time.sleep(0.1)
        terminal.type(INTERRUPT)
        terminal.exit_code()
    with at_terminal(SCRIPT, tokenizer, 0, 100, path) as terminal:
        terminal.until("tokens goes on.\n> ")
        terminal.type(END)
        assert ended(terminal)


def test_two_at_one_file(tokenizer, tmp_path):
    path = tmp_path / "talk.session"
    with at_terminal(SCRIPT, tokenizer, 0, 20, path) as terminal:
        terminal.until("> ")
        with at_terminal(SCRIPT, tokenizer, 0, 20, path) as other:
            other.until("error[R123]")
            assert other.exit_code() == 1
        terminal.type("ab\n")
        terminal.until("]\n")


@pytest.mark.parametrize("term", ["dumb", "xterm"])
def test_a_long_line_is_read_whole(term):
    line = "".join(f"{number:04d}é한🙂\t" for number in range(800))
    digest = hashlib.sha256(line.encode()).hexdigest()
    assert len(line.encode()) > 10_000
    with at_terminal(SCRIPT, term=term) as terminal:
        terminal.until("> ")
        terminal.type(f"{line}\n")
        terminal.until(f"{len(line)} {digest}.")
        terminal.until("> ")
        terminal.type("wait\n")
        terminal.until("waiting")  # now it reads nothing
        terminal.type(f"{line}\n")
        terminal.until(f"{len(line)} {digest}.")
        terminal.until("> ")
        terminal.type(END)
        assert ended(terminal)
