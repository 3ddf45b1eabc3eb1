"""A run with prompts: each answered for itself, in turn; those that a session file has the answers to are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llrun.faces.console import Console
from llrun.faces.printer import Printer, Wanted
from llrun.faces.recording import asked_for, check_same, is_whole, recorded, result_of
from llrun.faces.session_file import SessionFile
from llrun.requests.journal import How, Turn
from llrun.requests.request import Request, Result
from llrun.requests.scheduler import Scheduler
from llrun.requests.tokenizer import Tokenizer
from llrun.schema import ModelInfo

Answer = tuple[Result, str | None]  # its text, None without a tokenizer


@dataclass(frozen=True)
class Prompt:
    """Token ids, and where they come from, as the user counts it: `--prompt 2 of 3`."""

    ids: Sequence[int]
    source: str


@dataclass(frozen=True)
class PromptRun:
    """What all prompts of a run share. `file`: the session file, whose answers are shown and which is added to. `ends`:
    tokens that end an answer besides the model's."""

    prompts: Sequence[Prompt]
    wanted: Wanted
    tokenizer: Tokenizer | None
    model: ModelInfo
    console: Console
    file: SessionFile | None
    ends: frozenset[int] = frozenset()

    def turns(self) -> tuple[Turn, ...]:
        """What the file has of this run. Raises RunError R122 when it is another run's."""
        if self.file is None:
            return ()
        asked = [asked_for(prompt.ids, self.wanted) for prompt in self.prompts]
        turns = self.file.past.turns
        check_same(self.file.path, turns, asked, [prompt.source for prompt in self.prompts])
        return turns

    def read(self, turns: Sequence[Turn]) -> list[Answer]:
        """Show the answers that are whole."""
        whole = [turn for turn in turns if is_whole(turn, self.tokenizer, self.model, ends=self.ends)]
        if self.file and whole:
            self.console.note(
                f"{self.file.path}: {len(whole)} of {len(self.prompts)} answers are read from it."
            )
        return [self._read(turn) for turn in whole]

    def rest(self, scheduler: Scheduler, turns: Sequence[Turn], whole: int) -> Iterator[Answer]:
        """Answer the prompts after the first `whole`, showing each as it comes; one that was cut off goes on."""
        for index, prompt in enumerate(self.prompts[whole:], whole):
            answer = self._answer(scheduler, prompt, turns[index] if index < len(turns) else None)
            self.console.show("\n")
            yield answer

    def _read(self, turn: Turn) -> Answer:
        printer = self._printer(turn.asked.ids)
        for token in turn.tokens:
            printer.take(token)
        answer = result_of(turn), printer.finish()
        self.console.show("\n")
        if turn.ended is None and self.file:
            self.file.ended(How.DONE)
        return answer

    def _answer(self, scheduler: Scheduler, prompt: Prompt, cut: Turn | None) -> Answer:
        printer = self._printer(prompt.ids)
        produced = cut.tokens if cut else ()
        if self.file and cut:
            self.console.note(f"{self.file.path}: {prompt.source} goes on after {len(produced)} tokens.")
        elif self.file:
            self.file.asked(asked_for(prompt.ids, self.wanted))
        for token in produced:
            printer.take(token)
        sink = recorded(self.file, printer.take)
        request = Request(prompt.ids, self.wanted.tokens, self.wanted.sampling, sink, produced)
        result = scheduler.run_until(scheduler.submit(request))
        if self.file:
            self.file.ended(How.DONE)
        return result, printer.finish()

    def _printer(self, ids: Sequence[int]) -> Printer:
        return Printer(self.tokenizer, self.wanted.stops, ids, self.model, self.console, self.ends)
