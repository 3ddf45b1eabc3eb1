"""What a request is asked for, and its tokens shown as they come."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from llrun.faces.console import Console
from llrun.requests.sampling import Sampling
from llrun.requests.stream import Stream
from llrun.requests.tokenizer import Tokenizer
from llrun.schema import ModelInfo


@dataclass(frozen=True)
class Wanted:
    """`tokens` None: as many as fit, up to a default. `speculate`: whether tokens may be guessed."""

    tokens: int | None
    sampling: Sampling
    stops: tuple[str, ...]
    speculate: bool = True


class Printer:
    """Shows tokens as text, or as numbers when there is no tokenizer, and stops at a stop string, or at one of `ends`:
    tokens that end an answer besides those of the model."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        stops: Sequence[str],
        prompt: Sequence[int],
        model: ModelInfo,
        console: Console,
        ends: Collection[int] = (),
    ) -> None:
        self._stream = Stream(tokenizer, stops, prompt) if tokenizer else None
        self._stopping = frozenset(ends)
        self._ends = self._stopping | frozenset(model.eos_token_ids)
        self._console = console

    def take(self, token: int) -> bool:
        """Show what `token` adds; False when the answer ends with it."""
        if self._stream is None:
            self._console.show(f"{token} ")
            return True
        if token not in self._ends:
            self._console.show(self._stream.push(token))
        return not (self._stream.stopped or token in self._stopping)

    def finish(self) -> str | None:
        """Show what was held back; the whole text, None without a tokenizer."""
        if self._stream is None:
            return None
        self._console.show(self._stream.finish())
        return self._stream.text
