"""Conversations in a chat template at a terminal: commands, files, keys, what is pasted, a context that is full."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import small_tokenizers
from chat_templates import CHATML
from terminal import END, INTERRUPT, Terminal, at_terminal

SCRIPT = Path(__file__).parents[1] / "chat_here.py"
ROLES = ["<|im_start|>", "<|im_end|>"]
LEFT, RIGHT, UP = "\x1b[D", "\x1b[C", "\x1b[A"
PASTE, PASTED = "\x1b[200~", "\x1b[201~"
FRAME = len("<user\n>\n<assistant\n")  # tokens around a message, of a tokenizer of characters


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    """One of 97 ids, a character each, the others (numbers)."""
    vocabulary = {token: number for number, token in enumerate([*small_tokenizers.SPECIAL, *ROLES])}
    for token in [*"abcdefghijklmnopqrstuvwxyz \n012", *(f"({number})" for number in range(60))]:
        vocabulary[token] = len(vocabulary)
    made = small_tokenizers.Tokenizer(
        small_tokenizers.models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>")
    )
    made.add_special_tokens([*small_tokenizers.SPECIAL, *ROLES])
    made.decoder = small_tokenizers.decoders.Fuse()
    path = tmp_path / "tokenizer.json"
    path.write_bytes(small_tokenizers.data(made))
    return path


@pytest.fixture
def template(tmp_path) -> Path:
    path = tmp_path / "chat_template.jinja"
    path.write_text(CHATML)
    return path


def say(terminal: Terminal, line: str) -> tuple[int, int]:
    """Type a line; (tokens of the prompt, tokens of the answer)."""
    terminal.until("> ")
    terminal.type(f"{line}\n")
    terminal.until("\n[")
    figures = re.match(r"(\d+) prompt tokens,.*\((\d+) tokens", terminal.until("]\n"))
    assert figures is not None, terminal.shown
    return int(figures[1]), int(figures[2])


def command(terminal: Terminal, line: str, answer: str) -> None:
    terminal.until("> ")
    terminal.type(f"{line}\n")
    terminal.until(answer)


def ended(terminal: Terminal) -> bool:
    terminal.until("> ")
    terminal.type(END)
    return terminal.exit_code() == 0 and terminal.by_lines() and "Traceback" not in terminal.shown


def test_a_later_turn_takes_what_is_new_alone_and_reset_forgets(tokenizer, template):
    with at_terminal(SCRIPT, tokenizer, 0, 4, "-", template) as terminal:
        assert say(terminal, "ab")[0] == FRAME + 2
        # Its end and newline too, where the answer was cut off.
        assert say(terminal, "abc")[0] in (FRAME + 3 + 1, FRAME + 3 + 2)
        command(terminal, "/reset", "")
        assert say(terminal, "ab")[0] == FRAME + 2
        terminal.until("> ")
        terminal.type("\n")  # nothing is asked
        assert ended(terminal)


def test_commands(tokenizer, template, tmp_path):
    saved = tmp_path / "saved.json"
    with at_terminal(SCRIPT, tokenizer, 0, 4, "-", template) as terminal:
        command(terminal, "/help", "/save FILE")
        command(terminal, "/nothing", "error[R107]: there is no command /nothing")
        command(terminal, "/save", "needs the name of a file")
        say(terminal, "ab")
        command(terminal, f"/save {saved}", "2 messages")
        command(terminal, f"/save {saved}", "error[R126]")
        new = say(terminal, "b")[0]
        assert new in (FRAME + 1 + 1, FRAME + 1 + 2)
        command(terminal, f"/load {tmp_path / 'missing'}", "error[R126]")
        command(terminal, f"/load {saved}", "conversation of 2 messages goes on")
        assert say(terminal, "b")[0] > new + FRAME  # all of it
        command(terminal, "/quit", "")
        assert terminal.exit_code() == 0
    messages = json.loads(saved.read_text())["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"]
    assert messages[0]["content"] == "ab"
    assert saved.stat().st_mode & 0o77 == 0


def test_messages_of_several_lines(tokenizer, template):
    with at_terminal(SCRIPT, tokenizer, 0, 1, "-", template, term="xterm") as terminal:
        for lines, length in (
            ('"""ab\nc\n"""', 4),
            ("ab\\\nc", 4),
            ('"""ab"""', 2),
            (f"{PASTE}ab\nc\nd{PASTED}", 6),
        ):
            assert say(terminal, lines)[0] == FRAME + length, lines
            command(terminal, "/new", "")
        assert ended(terminal)


def test_arrow_keys_edit_and_bring_back(tokenizer, template):
    with at_terminal(SCRIPT, tokenizer, 0, 1, "-", template, term="xterm") as terminal:
        assert say(terminal, f"ac{LEFT}b{RIGHT}d")[0] == FRAME + 4
        command(terminal, "/reset", "")
        terminal.until("> ")
        terminal.type(f"{UP}{UP}\n")
        terminal.until(f"[{FRAME + 4} prompt tokens")
        assert "^[" not in terminal.shown
        assert ended(terminal)


def test_ten_thousand_bytes_come_whole(tokenizer, template, tmp_path):
    """Too many for the context, which names their number."""
    pasted = "abcdefghi\n" * 1000
    with at_terminal(SCRIPT, tokenizer, 0, 1, "-", template, term="xterm") as terminal:
        command(terminal, f"{PASTE}{pasted}{PASTED}", f"{FRAME + 10_000} prompt tokens + 1 new ones")
        assert say(terminal, "ab")[0] == FRAME + 2
        assert ended(terminal)


def test_an_interrupt_stops_the_answer_alone(tokenizer, template):
    with at_terminal(SCRIPT, tokenizer, 0.05, 100, "-", template) as terminal:
        terminal.until("> ")
        terminal.type("ab\n")
        terminal.until("(")
        terminal.type(INTERRUPT)
        terminal.until(" tokens, stopped)")
        terminal.until("> ")
        terminal.type("b\n")
        terminal.until("(")
        terminal.type(INTERRUPT)
        terminal.until(f"[{FRAME + 1 + 2} prompt tokens")  # and the end that the answer before it lacked
        assert ended(terminal)


def test_the_oldest_messages_go_with_a_note(tokenizer, template):
    with at_terminal(SCRIPT, tokenizer, 0, 40, "-", template) as terminal:
        for _ in range(5):
            say(terminal, "ab")
        assert "The context of 256 tokens is full: the oldest " in terminal.shown
        assert ended(terminal)


def test_a_session_file_keeps_the_messages(tokenizer, template, tmp_path):
    path, saved = tmp_path / "talk.session", [tmp_path / "one", tmp_path / "two"]
    with at_terminal(SCRIPT, tokenizer, 0, 9, path, template) as terminal:
        say(terminal, "ab")
        say(terminal, "b")
        command(terminal, f"/save {saved[0]}", "4 messages")
        last = say(terminal, "abc")
        terminal.until("> ")
    # As if it had been killed before its last message.
    lines = path.read_bytes().splitlines(keepends=True)
    asked = [index for index, line in enumerate(lines) if b'"asked"' in line]
    path.write_bytes(b"".join(lines[: asked[-1]]))
    with at_terminal(SCRIPT, tokenizer, 0, 9, path, template) as terminal:
        terminal.until("tokens goes on")
        command(terminal, f"/save {saved[1]}", "4 messages")
        assert say(terminal, "abc") == last
        assert ended(terminal)
    assert saved[0].read_text() == saved[1].read_text()
    with at_terminal(SCRIPT, tokenizer, 0, 9, path) as terminal:
        terminal.until("error[R122]")
        terminal.until("leave out --raw")
