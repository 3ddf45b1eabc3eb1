"""What is typed in a conversation: messages of several lines, commands, and conversations in files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from llrun.errors import RunError
from llrun.faces.console import MORE, Console
from llrun.files import TEXT_LIMIT
from llrun.requests.dialogue import ASSISTANT, SYSTEM, USER
from llrun.requests.journal import Message

BAD_FILE = "R126"
QUOTES = '"""'
RESET, SAVE, LOAD, HELP, QUIT = "/reset", "/save", "/load", "/help", "/quit"
OTHER_NAMES = {"/new": RESET, "/exit": QUIT, "/bye": QUIT, "/?": HELP}
COMMANDS = {
    RESET: "begin another conversation (also /new)",
    HELP: "these lines",
    QUIT: "end, as Ctrl-D does",
}
OF_MESSAGES = {
    **COMMANDS,
    f"{SAVE} FILE": "write the conversation to a new FILE",
    f"{LOAD} FILE": "go on with the conversation in FILE",
    QUOTES: f"begins a message of several lines, which ends with {QUOTES}; so does \\ at a line's end",
}
UNKNOWN = re.compile(r"/[a-z]+")


class _Saved(msgspec.Struct, frozen=True):
    messages: list[Message]


def read_message(console: Console) -> str | None:
    """A message, of several lines where the user says so; None at the end of input."""
    text = console.ask()
    if text is None:
        return None
    if text.startswith(QUOTES):
        text = text.removeprefix(QUOTES)
        while not text.rstrip().endswith(QUOTES):
            line = console.ask(MORE)
            if line is None:
                return None
            text = f"{text}\n{line}"
        return text.rstrip().removesuffix(QUOTES).removeprefix("\n").removesuffix("\n")
    while text.endswith("\\"):
        line = console.ask(MORE)
        if line is None:
            return None
        text = f"{text[:-1]}\n{line}"
    return text


def command_in(text: str, several: bool) -> tuple[str, str] | None:
    """The command and what it is given, None for a message. `several`: there are messages to save and load.

    Raises RunError R107 for a command that there is not, or that lacks its file.
    """
    name, _, given = text.strip().partition(" ")
    name = OTHER_NAMES.get(name, name)
    if name in COMMANDS and not given:
        return name, ""
    if not several:
        return None
    if name in (SAVE, LOAD):
        if not given.strip():
            raise RunError("R107", f"{name} needs the name of a file: {name} FILE")
        return name, given.strip()
    if UNKNOWN.fullmatch(text.strip()):
        raise RunError("R107", f"there is no command {name}: /help lists those there are")
    return None


def help_lines(several: bool) -> list[str]:
    listed = OF_MESSAGES if several else COMMANDS
    keys = "Ctrl-C stops an answer; arrow keys go to earlier lines and within one."
    return [*(f"{name:12} {meaning}" for name, meaning in listed.items()), keys]


def save(path: Path, messages: Sequence[Mapping[str, Any]]) -> None:
    """A new file, readable by its owner alone. Raises RunError R126."""
    said = _Saved([Message(message["role"], message["content"]) for message in messages])
    data = msgspec.json.format(msgspec.json.encode(said), indent=1) + b"\n"
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
    except FileExistsError as error:
        raise RunError(BAD_FILE, f"{path} is there already: give another name") from error
    except OSError as error:
        raise RunError(BAD_FILE, f"{path} cannot be written: {error.strerror}") from error


def load(path: Path) -> list[dict[str, str]]:
    """The messages of a file that `save` wrote, or of one like it. Raises RunError R126."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            data = file.read(TEXT_LIMIT + 1)
    except OSError as error:
        raise RunError(BAD_FILE, f"{path} cannot be read: {error.strerror}") from error
    try:
        messages = msgspec.json.decode(data, type=_Saved).messages
    except msgspec.MsgspecError as error:
        raise RunError(BAD_FILE, f"{path} holds no conversation: {error}") from error
    for index, message in enumerate(messages):
        if message.role not in (USER, ASSISTANT, SYSTEM):
            raise RunError(
                BAD_FILE, f"{path}: message {index} has the role {message.role!r}: user, assistant or system"
            )
    if not messages:
        raise RunError(BAD_FILE, f"{path} holds no message")
    return [{"role": message.role, "content": message.content} for message in messages]
