"""Text of tokens as they come: never half a character, nothing of a stop string, nothing lost."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from llrun.requests.tokenizer import Codec

UNFINISHED = "\ufffd"
INCOMPLETE = 3  # bytes of a character at most that is not whole yet
WINDOW = 64
PROMPT_TAIL = 8


class Stream:
    """Turns tokens into text piece by piece, up to a stop string.

    The pieces joined are what decoding all tokens after `prompt` at once reads as. Each token is decoded a
    bounded number of times, together with what is not shown yet and the token before, because what a token
    reads as may depend on it; `prompt` gives the first of those.

    Text is held back while its last character is incomplete, and while its end could be the beginning of a
    stop string. Of tokens that are single bytes (`Codec.byte`) a run is shown when it ends: one byte that is
    wrong makes all of it unreadable. A stop string in it counts as soon as it is there.
    """

    def __init__(self, codec: Codec, stops: Sequence[str] = (), prompt: Sequence[int] = ()) -> None:
        self._codec = codec
        self._stops = tuple(stops)
        self._window = _last(codec, prompt)
        self._run = _Run(max(map(len, self._stops), default=0))
        self._done = self._begin()
        self._held = ""
        self._pieces: list[str] = []
        self.stopped = False

    @property
    def text(self) -> str:
        """All that has been shown."""
        return "".join(self._pieces)

    def push(self, token: int) -> str:
        """What can be shown now. `stopped` is set when a stop string is complete; nothing follows it."""
        if self.stopped or self._codec.hidden(token):
            return ""
        self._window.append(token)
        byte = self._codec.byte(token)
        if byte is not None:
            tail = self._run.push(byte, self._held)
            return self._rest() if any(map(tail.endswith, self._stops)) else ""
        self._run.end()
        now = self._codec.decode(self._window)
        ready = _complete(now)
        piece = ready[self._done :]
        self._done = max(self._done, len(ready))
        if len(ready) == len(now):
            self._window = [token]
            self._done = len(self._codec.decode(self._window))
        elif len(self._window) > WINDOW:
            self._shorten(now)
        return self._show(piece)

    def finish(self) -> str:
        """What was held back: an incomplete character (as U+FFFD) and the beginning of a stop string."""
        if self.stopped:
            return ""
        shown = self._rest()
        if not self.stopped:
            self._pieces.append(self._held)
            shown, self._held = shown + self._held, ""
        self.stopped = True
        return shown

    def _begin(self) -> int:
        """How much of the window's text is the prompt's: all but a character that is incomplete."""
        values = [self._codec.byte(token) for token in self._window]
        start = next((i + 1 for i in reversed(range(len(values))) if values[i] is None), 0)
        run = bytes(value for value in values[start:] if value is not None)
        for value in run:
            self._run.push(value, "")
        shown = self._window[: start + _whole(run)]
        return len(_complete(self._codec.decode(shown))) if shown else 0

    def _shorten(self, now: str) -> None:
        """Drop the window's beginning, at a token from which on it reads the same."""
        for start in range(len(self._window) - PROMPT_TAIL, len(self._window) - INCOMPLETE):
            kept = self._codec.decode(self._window[start:])
            dropped = len(now) - len(kept)
            if now.endswith(kept) and dropped <= self._done:
                self._window, self._done = self._window[start:], self._done - dropped
                return

    def _rest(self) -> str:
        now = self._codec.decode(self._window)
        piece, self._done = now[self._done :], max(self._done, len(now))
        return self._show(piece)

    def _show(self, piece: str) -> str:
        self._held += piece
        ends = [index for index in (self._held.find(stop) for stop in self._stops) if index >= 0]
        if ends:
            shown, self._held, self.stopped = self._held[: min(ends)], "", True
        else:
            kept = max((_overlap(self._held, stop) for stop in self._stops), default=0)
            shown, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        self._pieces.append(shown)
        return shown


class _Run:
    """The end of the text of a run of byte tokens, `length` characters at most, for stop strings alone."""

    def __init__(self, length: int) -> None:
        self._length = length
        self.end()

    def end(self) -> None:
        """What follows is another run."""
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._broken = False
        self._tail: str | None = None

    def push(self, byte: int, before: str) -> str:
        """The end of the text with `byte`, empty while a character is incomplete. `before`: what was held
        back when the run began."""
        if self._tail is None:
            self._tail = before
        try:
            character = "" if self._broken else self._utf8.decode(bytes([byte]))
        except UnicodeDecodeError:
            self._broken, character = True, ""
        self._tail = (self._tail + character)[-self._length :] if self._length else ""
        return self._tail if character else ""


def _last(codec: Codec, prompt: Sequence[int]) -> list[int]:
    """The last tokens of `prompt` that decoding shows, a run of bytes whole."""
    tokens: list[int] = []
    for token in reversed(prompt):
        if codec.hidden(token):
            continue
        in_run = bool(tokens) and codec.byte(token) is not None and codec.byte(tokens[-1]) is not None
        if len(tokens) >= PROMPT_TAIL and not in_run:
            break
        tokens.append(token)
    return tokens[::-1]


def _whole(run: bytes) -> int:
    """How many of the bytes are complete characters, up to the first that is none."""
    try:
        run.decode()
    except UnicodeDecodeError as error:
        return error.start
    return len(run)


def _complete(text: str) -> str:
    """`text` without an incomplete last character, which decoders show as up to three U+FFFD, one a byte."""
    for _ in range(INCOMPLETE):
        text = text.removesuffix(UNFINISHED)
    return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop` without being all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
