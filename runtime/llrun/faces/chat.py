"""A conversation at a terminal."""

from __future__ import annotations

from llrun.errors import RunError
from llrun.faces.console import Console
from llrun.faces.printer import Printer, Wanted
from llrun.requests.conversation import Conversation
from llrun.requests.request import check_ids, tokens_allowed
from llrun.requests.scheduler import Scheduler
from llrun.requests.tokenizer import Tokenizer


def chat(scheduler: Scheduler, wanted: Wanted, tokenizer: Tokenizer, console: Console) -> None:
    """One sequence, every line added to it, until the end of input."""
    console.note("A line is added to the conversation as it is; /new begins another; end with Ctrl-D.")
    model = scheduler.session.device.record.model
    conversation = Conversation(scheduler)
    while (line := console.ask()) is not None:
        if line == "/new":
            conversation.close()
            conversation = Conversation(scheduler)
            continue
        try:
            ids = tokenizer.encode(line)
            check_ids(ids, model)
            count = tokens_allowed(len(ids), wanted.tokens, model, conversation.used)
        except RunError as error:
            console.note(f"{error} (/new begins another conversation)")
            continue
        printer = Printer(tokenizer, wanted.stops, ids, model, console)
        result = conversation.ask(ids, count, wanted.sampling, printer.take)
        printer.finish()
        console.show("\n")
        console.figures(result)
