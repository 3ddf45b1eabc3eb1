"""Text of tokens as they come: never half a character, nothing of a stop string, nothing lost."""

from __future__ import annotations

from collections.abc import Sequence

from llrun.requests.tokenizer import Codec

UNFINISHED = "\ufffd"
WINDOW = 64
PROMPT_TAIL = 8


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
