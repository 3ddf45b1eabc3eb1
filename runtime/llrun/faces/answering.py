"""The head's requests: every prompt given answered in turn, or a conversation at a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llrun.device.slice import StoredSlice
from llrun.errors import RunError
from llrun.faces.chat import chat
from llrun.faces.console import Console
from llrun.faces.printer import Wanted
from llrun.faces.prompts import Prompt, PromptRun
from llrun.faces.recording import recording
from llrun.faces.session_file import SessionFile
from llrun.faces.templated import AS_THE_MODEL, PLAIN, Chatting, Written, written_by
from llrun.faces.tokenizer_files import read_tokenizer
from llrun.faces.where import Where, session_on
from llrun.head.options import Balancing
from llrun.requests.journal import Kind
from llrun.requests.request import check_ids, tokens_allowed
from llrun.requests.scheduler import Scheduler
from llrun.requests.tokenizer import NO_TOKENIZER, UNREADABLE, Tokenizer
from llrun.schema import ModelInfo


@dataclass(frozen=True)
class Given:
    """What the command line gave to be answered: texts, or lists of token ids, or neither."""

    texts: Sequence[str]
    ids: Sequence[Sequence[int]]


def answer_all(
    stored: StoredSlice,
    where: Where,
    wanted: Wanted,
    given: Given,
    as_json: bool,
    console: Console,
    balancing: Balancing,
    path: Path | None,
    chatting: Chatting = AS_THE_MODEL,
) -> None:
    """The head's work: every prompt given, or those on stdin, or a conversation at the terminal. `path`: the session
    file that it goes on from, and adds to. `chatting`: how texts are made into a chat."""
    if given.texts and given.ids:
        raise RunError("R108", "give --prompt or --prompt-ids, not both")
    with written_by(stored, chatting, ids=bool(given.ids)) as template:
        _answer(stored, where, wanted, given, as_json, console, balancing, path, Written(template, chatting))


def _answer(
    stored: StoredSlice,
    where: Where,
    wanted: Wanted,
    given: Given,
    as_json: bool,
    console: Console,
    balancing: Balancing,
    path: Path | None,
    written: Written,
) -> None:
    tokenizer = tokenizer_for_ids(stored, wanted, console) if given.ids else read_tokenizer(stored)
    if wanted.stops and tokenizer is None:
        raise RunError(NO_TOKENIZER, "--stop needs a tokenizer, and this bundle has none")
    if not given.texts and not given.ids and at_terminal() and not as_json:
        with recording(path, stored.record, Kind.CONVERSATION, console) as file:
            talk(stored, where, wanted, tokenizer, console, balancing, file, written)
        return
    prompts = prompts_of(given, tokenizer, written)
    if not prompts:
        raise RunError("R103", "no prompt: give --prompt or --prompt-ids, or lines on standard input")
    check_prompts(prompts, wanted, stored.record.model)
    with recording(path, stored.record, Kind.PROMPTS, console) as file:
        ends = written.ends(tokenizer)
        run = PromptRun(prompts, wanted, tokenizer, stored.record.model, console, file, ends)
        turns = run.turns()
        answers, readings = run.read(turns), None
        if len(answers) < len(prompts):
            with session_on(stored, where, console, balancing) as session:
                for answer in run.rest(Scheduler(session, speculate=wanted.speculate), turns, len(answers)):
                    answers.append(answer)
                    if not as_json:
                        console.figures(answer[0])
                readings = session.readings
    if as_json:
        console.results(answers, readings)


def tokenizer_for_ids(stored: StoredSlice, wanted: Wanted, console: Console) -> Tokenizer | None:
    """The tokenizer for prompts that are ids already: None, with a note, where it cannot be used."""
    try:
        return read_tokenizer(stored)
    except RunError as error:
        if wanted.stops or error.code not in (NO_TOKENIZER, UNREADABLE):
            raise
        console.note(f"Tokens are shown as ids, without their text: {error.message}")
        return None


def talk(
    stored: StoredSlice,
    where: Where,
    wanted: Wanted,
    tokenizer: Tokenizer | None,
    console: Console,
    balancing: Balancing,
    file: SessionFile | None,
    written: Written,
) -> None:
    """A conversation at the terminal, from starting the devices to the end of input."""
    if tokenizer is None:
        raise RunError(NO_TOKENIZER, "this bundle has no tokenizer to talk with: use --prompt-ids 1,2,3")
    dialogue = written.dialogue(tokenizer, stored.record.model)
    with session_on(stored, where, console, balancing) as session:
        chat(Scheduler(session, speculate=wanted.speculate), wanted, tokenizer, console, file, dialogue)


def prompts_of(given: Given, tokenizer: Tokenizer | None, written: Written = PLAIN) -> list[Prompt]:
    """The ids of all that is to be answered. Raises RunError R106 for text without a tokenizer."""
    if given.ids:
        return [Prompt(ids, _source("--prompt-ids", i, given.ids)) for i, ids in enumerate(given.ids)]
    texts = [(_source("--prompt", i, given.texts), text) for i, text in enumerate(given.texts)]
    texts = texts or lines_of_stdin()
    if tokenizer is None and texts:
        raise RunError(NO_TOKENIZER, "this bundle has no tokenizer: give token ids, --prompt-ids 1,2,3")
    prompts = []
    for source, text in texts:
        with _told_of(source):
            prompts.append(Prompt(tokenizer.encode(written.asked(text)) if tokenizer else [], source))
    return prompts


def check_prompts(prompts: Sequence[Prompt], wanted: Wanted, model: ModelInfo) -> None:
    """Refuse bad input before anything is loaded or started."""
    for prompt in prompts:
        with _told_of(prompt.source):
            check_ids(prompt.ids, model)
            tokens_allowed(len(prompt.ids), wanted.tokens, model)


@contextmanager
def _told_of(source: str) -> Iterator[None]:
    """Name the prompt that an error is about."""
    try:
        yield
    except RunError as error:
        raise RunError(error.code, f"{source}: {error.message}", error.exit_code) from error


def _source(option: str, index: int, given: Sequence[object]) -> str:
    return f"{option} {index + 1} of {len(given)}" if len(given) > 1 else option


def at_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def lines_of_stdin() -> list[tuple[str, str]]:
    """One prompt a line, with its source; lines without text are none.

    A line ends where an editor says so, not at the other characters that may separate text.
    """
    if sys.stdin is None:
        return []
    try:
        lines = sys.stdin.buffer.read().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise RunError("R107", f"standard input is not UTF-8 text: {error}") from error
    return [
        (f"line {number} of standard input", line.removesuffix("\r"))
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
