"""A conversation at a terminal."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from llrun.errors import RunError
from llrun.faces.console import Console
from llrun.faces.messages import LOAD, QUIT, RESET, SAVE, command_in, help_lines, load, read_message, save
from llrun.faces.printer import Printer, Wanted
from llrun.faces.recording import asked_for, how_it_ended, is_whole, recorded, text_of, wanted_by
from llrun.faces.session_file import UNWRITTEN, SessionFile
from llrun.requests.conversation import Conversation
from llrun.requests.dialogue import Ask, Dialogue
from llrun.requests.journal import OTHER_RUN, How, Turn
from llrun.requests.request import Handle, Request, check_ids, keep_on, tokens_allowed
from llrun.requests.sampling import Sampling
from llrun.requests.scheduler import Scheduler
from llrun.requests.tokenizer import Tokenizer


def chat(
    scheduler: Scheduler,
    wanted: Wanted,
    tokenizer: Tokenizer,
    console: Console,
    file: SessionFile | None = None,
    dialogue: Dialogue | None = None,
) -> None:
    """One sequence, every line added to it, until the end of input; with a `dialogue` every line a message of it.
    `file`: it goes on with that one's conversation.

    What is wrong with a line, or with its answer alone, is told, and the next is asked for. An interrupt
    during an answer ends the answer; raises KeyboardInterrupt for one at the prompt, and for a second, and RunError
    R122 when `file` holds a conversation of the other kind, R124 when it cannot be written.
    """
    added = "is a message" if dialogue else "is added to the conversation as it is"
    console.note(f"A line {added}; /help lists commands; Ctrl-C stops an answer; end with Ctrl-D.")
    talk = _Talk(scheduler, wanted, tokenizer, console, file, dialogue)
    with console.conversation():
        talk.go_on()
        while True:
            try:
                if not talk.turn():
                    return
            except RunError as error:
                if error.code == UNWRITTEN:
                    raise
                console.note(f"{error} (/reset begins another conversation)")


class _Talk:
    """The conversation, and what all its lines share."""

    def __init__(
        self,
        scheduler: Scheduler,
        wanted: Wanted,
        tokenizer: Tokenizer,
        console: Console,
        file: SessionFile | None,
        dialogue: Dialogue | None,
    ) -> None:
        self._scheduler = scheduler
        self._wanted = wanted
        self._tokenizer = tokenizer
        self._console = console
        self._file = file
        self._dialogue = dialogue
        self._first = list(dialogue.messages) if dialogue else []  # the system's
        self._model = scheduler.session.device.record.model
        self._conversation = Conversation(scheduler)

    def turn(self) -> bool:
        """Take a line, and do what it says; False when it says that this is the end."""
        text = read_message(self._console) if self._dialogue else self._console.ask()
        if text is None:
            return False
        command = command_in(text, self._dialogue is not None)
        if command is None:
            if text or not self._dialogue:
                self._say(text)
            return True
        return self._obey(*command)

    def _obey(self, name: str, given: str) -> bool:
        """Do what a command says; False for the last."""
        if name == QUIT:
            return False
        if name == RESET:
            self._begin_another()
            if self._dialogue:
                self._dialogue.begin(self._first)
        elif self._dialogue and name == SAVE:
            save(Path(given).expanduser(), self._dialogue.messages)
            self._console.note(f"{given}: {len(self._dialogue.messages)} messages.")
        elif self._dialogue and name == LOAD:
            messages = load(Path(given).expanduser())
            self._begin_another()
            self._dialogue.begin(messages)
            self._console.note(f"{given}: its conversation of {len(messages)} messages goes on.")
        else:
            for line in help_lines(self._dialogue is not None):
                self._console.note(line)
        return True

    def _begin_another(self) -> None:
        self._conversation.close()
        self._conversation = Conversation(self._scheduler)
        if self._file:
            self._file.forgotten()

    def _say(self, text: str) -> None:
        """Ask for what follows `text`. Raises RunError for what cannot be asked."""
        ask = self._ask(text)
        if ask.fresh and self._conversation.used:
            self._begin_another()
        if ask.forgotten:
            self._console.note(
                f"The context of {self._model.shapes.context} tokens is full: the oldest {ask.forgotten} messages"
                " are left out from here on (--keep-context refuses instead)."
            )
        self._answer(ask, replace(self._wanted, tokens=ask.tokens))

    def _ask(self, text: str) -> Ask:
        used = self._conversation.used
        if self._dialogue:
            return self._dialogue.ask(text, self._wanted.tokens, used)
        ids = self._tokenizer.encode(text, continued=used > 0)
        check_ids(ids, self._model)
        tokens_allowed(len(ids), self._wanted.tokens, self._model, used)
        return Ask(ids, self._wanted.tokens)

    def _answer(self, ask: Ask, wanted: Wanted, cut: Turn | None = None) -> None:
        """Show the answer as it comes, and what it took, or its error. `cut`: what there is of it already."""
        ends = self._dialogue.ends if self._dialogue else frozenset()
        printer = Printer(self._tokenizer, wanted.stops, ask.ids, self._model, self._console, ends)
        produced = cut.tokens if cut else ()
        for token in produced:
            printer.take(token)
        if self._file and not cut:
            self._file.asked(asked_for(ask.ids, wanted, ask.messages))
        sink = recorded(self._file, printer.take)
        handle = self._conversation.submit(Request(ask.ids, wanted.tokens, wanted.sampling, sink, produced))
        try:
            with _interrupt_cancels(handle):
                while not handle.done and self._scheduler.step():
                    pass
        except KeyboardInterrupt:  # a second one: the user wants no more of this answer
            self._ended(How.CANCELLED)
            raise
        text = printer.finish()
        self._console.show("\n")
        if handle.error:
            self._console.note(str(handle.error))
        if handle.result:
            self._console.figures(handle.result)
        self._ended(how_it_ended(handle))
        if self._dialogue and handle.begun:
            self._dialogue.asked(ask)
            self._dialogue.answered(text or "", handle.tokens)

    def go_on(self) -> None:
        """Take in what the file says, and finish the answer that was cut off, showing it from its beginning."""
        file = self._file
        if file is None or not file.past.turns:
            return
        past, cut = file.past, file.past.cut
        self._check_kind(file)
        said = past.said
        ends = self._dialogue.ends if self._dialogue else ()
        whole = [turn for turn in past.turns if turn.ended not in (None, How.REFUSED)]
        if cut and is_whole(cut, self._tokenizer, self._model, len(said), ends):
            said = [*said, *cut.asked.ids, *cut.tokens]
            file.ended(How.DONE)
            whole, cut = [*whole, cut], None
        self._console.note(f"{file.path}: its conversation of {len(said)} tokens goes on.")
        if said:
            self._conversation.ask(said, 0, Sampling(), keep_on)
        if (whole or cut) and self._dialogue:
            self._dialogue.begin(())  # the file has the system's message too
        for turn in whole:
            self._take_in(turn)
        if cut:
            self._console.note(
                f"Its last answer was cut off after {len(cut.tokens)} tokens; here it is, and goes on:"
            )
            self._answer(self._again(cut), wanted_by(cut.asked), cut)

    def _again(self, turn: Turn) -> Ask:
        asked = turn.asked
        if self._dialogue is None:
            return Ask(asked.ids, asked.tokens)
        messages = [{"role": message.role, "content": message.content} for message in asked.messages]
        return self._dialogue.again(messages, asked.ids, asked.tokens)

    def _take_in(self, turn: Turn) -> None:
        """A turn of an earlier run is part of the conversation."""
        if self._dialogue:
            self._dialogue.asked(self._again(turn))
            self._dialogue.answered(text_of(turn, self._tokenizer), turn.tokens)

    def _check_kind(self, file: SessionFile) -> None:
        """Raises RunError R122 for a conversation without messages in a dialogue, and the other way round."""
        for turn in file.past.turns:
            if bool(turn.asked.messages) != (self._dialogue is not None):
                held, remedy = (
                    ("messages", "leave out --raw") if turn.asked.messages else ("text", "add --raw")
                )
                raise RunError(
                    OTHER_RUN,
                    f"--session {file.path} holds a conversation of {held}: {remedy}, or give another file",
                )

    def _ended(self, how: How) -> None:
        if self._file:
            self._file.ended(how)


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
