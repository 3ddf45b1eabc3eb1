"""The head's requests: every prompt given answered in turn, or a conversation at a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from llrun.device.slice import Place
from llrun.errors import RunError
from llrun.faces.chat import chat
from llrun.faces.console import Console
from llrun.faces.printer import Printer, Wanted
from llrun.faces.tokenizer_files import has_chat_template, read_tokenizer
from llrun.faces.where import Where, session_on
from llrun.requests.conversation import generate
from llrun.requests.request import Result, check_ids, tokens_allowed
from llrun.requests.scheduler import Scheduler
from llrun.requests.tokenizer import Tokenizer
from llrun.schema import ModelInfo


@dataclass(frozen=True)
class Given:
    """What the command line gave to be answered: texts, or lists of token ids, or neither."""

    texts: Sequence[str]
    ids: Sequence[Sequence[int]]


def answer_all(
    place: Place, where: Where, wanted: Wanted, given: Given, as_json: bool, console: Console
) -> None:
    """The head's work: every prompt given, or those on stdin, or a conversation at the terminal."""
    tokenizer = read_tokenizer(place)
    if given.texts and given.ids:
        raise RunError("R108", "give --prompt or --prompt-ids, not both")
    if wanted.stops and tokenizer is None:
        raise RunError("R106", "--stop needs a tokenizer, and this bundle has none")
    if not given.texts and not given.ids and at_terminal() and not as_json:
        talk(place, where, wanted, tokenizer, console)
        return
    prompts = [list(ids) for ids in given.ids] or encode(given.texts or lines_of_stdin(), tokenizer)
    if not prompts:
        raise RunError("R103", "no prompt: give --prompt or --prompt-ids, or lines on standard input")
    check_prompts(prompts, wanted, place.record.model)
    answers = []
    with session_on(place, where, console) as session:
        scheduler = Scheduler(session)
        for prompt in prompts:
            answers.append(answer(scheduler, prompt, wanted, tokenizer, console))
            console.show("\n")
            if not as_json:
                console.figures(answers[-1][0])
    if as_json:
        console.results(answers)


def talk(place: Place, where: Where, wanted: Wanted, tokenizer: Tokenizer | None, console: Console) -> None:
    """A conversation at the terminal, from starting the devices to the end of input."""
    if tokenizer is None:
        raise RunError("R106", "this bundle has no tokenizer to talk with: use --prompt-ids 1,2,3")
    with session_on(place, where, console) as session:
        if has_chat_template(place):
            console.note("The model has a chat template, which is not applied: lines are continued as text.")
        chat(Scheduler(session), wanted, tokenizer, console)


def answer(
    scheduler: Scheduler, ids: Sequence[int], wanted: Wanted, tokenizer: Tokenizer | None, console: Console
) -> tuple[Result, str | None]:
    """One request, its text shown as it comes; the result and its text (None without a tokenizer)."""
    printer = Printer(tokenizer, wanted.stops, ids, scheduler.session.device.record.model, console)
    result = generate(scheduler, ids, wanted.tokens, wanted.sampling, printer.take)
    return result, printer.finish()


def encode(texts: Sequence[str], tokenizer: Tokenizer | None) -> list[list[int]]:
    """Token ids of each text. Raises RunError R106 without a tokenizer."""
    if tokenizer is None:
        raise RunError("R106", "this bundle has no tokenizer: give token ids, --prompt-ids 1,2,3")
    return [tokenizer.encode(text) for text in texts]


def check_prompts(prompts: Sequence[Sequence[int]], wanted: Wanted, model: ModelInfo) -> None:
    """Refuse bad input before anything is loaded or started."""
    for ids in prompts:
        check_ids(ids, model)
        tokens_allowed(len(ids), wanted.tokens, model)


def at_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def lines_of_stdin() -> list[str]:
    """One prompt a line; empty lines are none."""
    if sys.stdin is None:
        return []
    try:
        lines = sys.stdin.buffer.read().decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise RunError("R107", f"standard input is not UTF-8 text: {error}") from error
    return [line for line in lines if line.strip()]
