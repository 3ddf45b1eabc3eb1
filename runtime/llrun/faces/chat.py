"""A conversation at a terminal."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from llrun.errors import RunError
from llrun.faces.console import Console
from llrun.faces.printer import Printer, Wanted
from llrun.faces.recording import asked_for, how_it_ended, is_whole, recorded, wanted_by
from llrun.faces.session_file import UNWRITTEN, SessionFile
from llrun.requests.conversation import Conversation
from llrun.requests.journal import How, Turn
from llrun.requests.request import Handle, Request, check_ids, keep_on, tokens_allowed
from llrun.requests.sampling import Sampling
from llrun.requests.scheduler import Scheduler
from llrun.requests.tokenizer import Tokenizer
from llrun.schema import ModelInfo


def chat(
    scheduler: Scheduler,
    wanted: Wanted,
    tokenizer: Tokenizer,
    console: Console,
    file: SessionFile | None = None,
) -> None:
    """One sequence, every line added to it, until the end of input. `file`: it goes on with that one's conversation.

    What is wrong with a line, or with its answer alone, is told, and the next is asked for. An interrupt
    during an answer ends the answer; raises KeyboardInterrupt for one at the prompt, and for a second, and RunError
    R124 when `file` cannot be written.
    """
    console.note(
        "A line is added to the conversation as it is; /new begins another; Ctrl-C stops an answer; end with"
        " Ctrl-D."
    )
    talk = _Talk(scheduler, tokenizer, console, file)
    conversation = Conversation(scheduler)
    with console.conversation():
        if file and file.past.turns:
            talk.go_on(conversation, file)
        while True:
            try:
                line = console.ask()
                if line is None:
                    return
                if line == "/new":
                    conversation.close()
                    conversation = Conversation(scheduler)
                    if file:
                        file.forgotten()
                    continue
                ids = talk.ids(line, conversation, wanted)
            except RunError as error:
                if error.code == UNWRITTEN:
                    raise
                console.note(f"{error} (/new begins another conversation)")
                continue
            talk.answer(conversation, ids, wanted)


@dataclass(frozen=True)
class _Talk:
    """What all lines share."""

    scheduler: Scheduler
    tokenizer: Tokenizer
    console: Console
    file: SessionFile | None

    @property
    def model(self) -> ModelInfo:
        return self.scheduler.session.device.record.model

    def ids(self, line: str, conversation: Conversation, wanted: Wanted) -> list[int]:
        """The line's token ids. Raises RunError for what cannot be asked."""
        ids = self.tokenizer.encode(line, continued=conversation.used > 0)
        check_ids(ids, self.model)
        tokens_allowed(len(ids), wanted.tokens, self.model, conversation.used)
        return ids

    def answer(
        self, conversation: Conversation, ids: Sequence[int], wanted: Wanted, cut: Turn | None = None
    ) -> None:
        """Show the answer as it comes, and what it took, or its error. `cut`: what there is of it already."""
        printer = Printer(self.tokenizer, wanted.stops, ids, self.model, self.console)
        produced = cut.tokens if cut else ()
        for token in produced:
            printer.take(token)
        if self.file and not cut:
            self.file.asked(asked_for(ids, wanted))
        sink = recorded(self.file, printer.take)
        handle = conversation.submit(Request(ids, wanted.tokens, wanted.sampling, sink, produced))
        try:
            with _interrupt_cancels(handle):
                while not handle.done and self.scheduler.step():
                    pass
        except KeyboardInterrupt:  # a second one: the user wants no more of this answer
            self._ended(How.CANCELLED)
            raise
        printer.finish()
        self.console.show("\n")
        if handle.error:
            self.console.note(str(handle.error))
        if handle.result:
            self.console.figures(handle.result)
        self._ended(how_it_ended(handle))

    def go_on(self, conversation: Conversation, file: SessionFile) -> None:
        """Take in what the file says, and finish the answer that was cut off, showing it from its beginning."""
        past, cut = file.past, file.past.cut
        said = past.said
        if cut and is_whole(cut, self.tokenizer, self.model, len(said)):
            said = [*said, *cut.asked.ids, *cut.tokens]
            file.ended(How.DONE)
            cut = None
        self.console.note(f"{file.path}: its conversation of {len(said)} tokens goes on.")
        if said:
            conversation.ask(said, 0, Sampling(), keep_on)
        if cut:
            self.console.note(
                f"Its last answer was cut off after {len(cut.tokens)} tokens; here it is, and goes on:"
            )
            self.answer(conversation, cut.asked.ids, wanted_by(cut.asked), cut)

    def _ended(self, how: How) -> None:
        if self.file:
            self.file.ended(how)


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
