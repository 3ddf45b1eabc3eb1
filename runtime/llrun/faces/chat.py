"""A conversation at a terminal."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from llrun.errors import RunError
from llrun.faces.console import Console
from llrun.faces.printer import Printer, Wanted
from llrun.requests.conversation import Conversation
from llrun.requests.request import Handle, Request, check_ids, tokens_allowed
from llrun.requests.scheduler import Scheduler
from llrun.requests.tokenizer import Tokenizer


def chat(scheduler: Scheduler, wanted: Wanted, tokenizer: Tokenizer, console: Console) -> None:
    """One sequence, every line added to it, until the end of input.

    What is wrong with a line, or with its answer alone, is told, and the next is asked for. An interrupt
    during an answer ends the answer; raises KeyboardInterrupt for one at the prompt, and for a second.
    """
    console.note(
        "A line is added to the conversation as it is; /new begins another; Ctrl-C stops an answer; end with"
        " Ctrl-D."
    )
    conversation = Conversation(scheduler)
    with console.conversation():
        while True:
            try:
                line = console.ask()
                if line is None:
                    return
                if line == "/new":
                    conversation.close()
                    conversation = Conversation(scheduler)
                    continue
                ids = _ids(line, conversation, wanted, tokenizer, scheduler)
            except RunError as error:
                console.note(f"{error} (/new begins another conversation)")
                continue
            _answer(scheduler, conversation, ids, wanted, tokenizer, console)


def _ids(
    line: str, conversation: Conversation, wanted: Wanted, tokenizer: Tokenizer, scheduler: Scheduler
) -> list[int]:
    """The line's token ids. Raises RunError for what cannot be asked."""
    model = scheduler.session.device.record.model
    ids = tokenizer.encode(line, continued=conversation.used > 0)
    check_ids(ids, model)
    tokens_allowed(len(ids), wanted.tokens, model, conversation.used)
    return ids


def _answer(
    scheduler: Scheduler,
    conversation: Conversation,
    ids: list[int],
    wanted: Wanted,
    tokenizer: Tokenizer,
    console: Console,
) -> None:
    """Show the answer as it comes, and what it took, or its error."""
    printer = Printer(tokenizer, wanted.stops, ids, scheduler.session.device.record.model, console)
    handle = conversation.submit(Request(ids, wanted.tokens, wanted.sampling, printer.take))
    with _interrupt_cancels(handle):
        while not handle.done and scheduler.step():
            pass
    printer.finish()
    console.show("\n")
    if handle.error:
        console.note(str(handle.error))
    if handle.result:
        console.figures(handle.result)


@contextmanager
def _interrupt_cancels(handle: Handle) -> Iterator[None]:
    """Ctrl-C ends the request; a second, while that is under way, is as ever."""
    before = signal.getsignal(signal.SIGINT)

    def cancel(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        handle.cancel()

    signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
