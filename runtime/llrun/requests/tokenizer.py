"""Text to token ids and back, on the head alone: streaming that never shows half a character, and stop
strings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from llrun.errors import USAGE, RunError

UNFINISHED = "\ufffd"
WINDOW = 64
PROMPT_TAIL = 8


class Codec(Protocol):
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


class Tokenizer:
    """A model's tokenizer.json. Encoding adds the special tokens it prescribes; decoding leaves them out."""

    def __init__(self, path: Path) -> None:
        try:
            from tokenizers import Tokenizer as Reader
        except ImportError as error:
            raise RunError(
                "R106",
                "text needs the package tokenizers: pip install 'llrun[head]', or use --prompt-ids",
                USAGE,
            ) from error
        self._inner = Reader.from_file(str(path))

    def encode(self, text: str) -> list[int]:
        """Token ids. Raises RunError R107 for what the terminal could not decode (lone surrogates)."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RunError("R107", f"the prompt is not UTF-8 text: {error}", USAGE) from error
        return list(self._inner.encode(text).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._inner.decode(list(ids), skip_special_tokens=True))


class Stream:
    """Turns tokens into text piece by piece, up to a stop string.

    Text is held back while its last character is incomplete, and while its end could be the beginning of
    a stop string. Tokens are decoded together with one before them, because what a token reads as may
    depend on it; `prompt` gives the first of those.
    """

    def __init__(self, codec: Codec, stops: Sequence[str] = (), prompt: Sequence[int] = ()) -> None:
        self._codec = codec
        self._stops = tuple(stops)
        self._window = list(prompt[-PROMPT_TAIL:])
        self._done = len(_complete(codec.decode(self._window))) if self._window else 0
        self._held = ""
        self.stopped = False
        self.text = ""

    def push(self, token: int) -> str:
        """What can be shown now. `stopped` is set when a stop string is complete; nothing follows it."""
        if self.stopped:
            return ""
        self._window.append(token)
        now = self._codec.decode(self._window)
        ready = now if len(self._window) > WINDOW else _complete(now)
        piece = ready[self._done :]
        self._done = max(self._done, len(ready))
        if len(ready) == len(now):
            self._window = [token]
            self._done = len(self._codec.decode(self._window))
        return self._show(piece)

    def finish(self) -> str:
        """What was held back: an incomplete character (as U+FFFD) and the beginning of a stop string."""
        if self.stopped:
            return ""
        shown = self._show(self._codec.decode(self._window)[self._done :])
        if not self.stopped:
            self.text += self._held
            shown, self._held = shown + self._held, ""
        self.stopped = True
        return shown

    def _show(self, piece: str) -> str:
        self._held += piece
        found = [index for index in (self._held.find(stop) for stop in self._stops) if index >= 0]
        if found:
            shown, self._held, self.stopped = self._held[: min(found)], "", True
        else:
            kept = max((_overlap(self._held, stop) for stop in self._stops), default=0)
            shown, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        self.text += shown
        return shown


def _complete(text: str) -> str:
    """`text` without an incomplete last character, which decoders show as up to three U+FFFD, one a byte."""
    for _ in range(3):
        text = text.removesuffix(UNFINISHED)
    return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop` without being all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
