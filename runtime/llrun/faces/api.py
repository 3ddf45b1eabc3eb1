"""llrun from Python: `llrun.Session`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path

from llrun.device.slice import StoredSlice, find
from llrun.errors import RunError
from llrun.faces.tokenizer_files import read_tokenizer
from llrun.faces.where import Where, check_peers, session_on
from llrun.head.controls import Note, silent
from llrun.head.hook import load_hook
from llrun.head.moves import Move
from llrun.head.options import BUILT_IN, WAIT_S, Balancing, Rebalance
from llrun.head.readings import Readings
from llrun.requests.request import Request, Result
from llrun.requests.sampling import Sampling
from llrun.requests.scheduler import Scheduler
from llrun.requests.stream import Stream
from llrun.requests.tokenizer import NO_TOKENIZER, UNREADABLE, Tokenizer
from llrun.wire.transport import Tcp

Each = Callable[[int, str], object]


@dataclass(frozen=True)
class Answer(Result):
    """A result and its text, None where the tokenizer is missing or cannot be read."""

    text: str | None = None


class Session:
    """A bundle on its devices, as `llrun BUNDLE` runs it; this process is the head.

        with llrun.Session("bundle/", local=True) as session:
            print(session.generate("def main(", tokens=64).text)

    `local`: the workers are processes of this machine, which end with the `with`; leave it in the thread that entered
    it. `peers`: addresses of workers that are not where the bundle says, HOST:PORT by name. `rebalance`: a function of
    a View that gives the next stages or None, or a text as `--rebalance` takes it. `verify`, `timeout_s`, `wait_s`,
    `mirror`, `speculate`: as the command line's options. `note` is told what the command line tells on stderr.

    A session is for one thread. What goes wrong is a RunError, which as a text is the line that llrun prints.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        local: bool = False,
        peers: Mapping[str, str] | None = None,
        verify: bool = True,
        timeout_s: float = 120.0,
        rebalance: str | Rebalance = "auto",
        wait_s: float = WAIT_S,
        mirror: bool = False,
        speculate: bool = True,
        note: Note = silent,
    ) -> None:
        """Raises RunError for what is wrong with the bundle or with an option, before anything is started."""
        if isinstance(rebalance, str) and rebalance not in BUILT_IN:
            rebalance = load_hook(rebalance)
        self._balancing = Balancing(rebalance, wait_s, mirror)
        self._stored = find(Path(path), None)
        self._where = Where(local, dict(peers or {}), verify, timeout_s, Tcp())
        check_peers(self._stored, self._where.peers)
        self._note, self._speculate = note, speculate
        self._tokenizer, self._no_text = _tokenizer_of(self._stored)
        self._scheduler: Scheduler | None = None
        self._open = ExitStack()

    def __enter__(self) -> Session:
        told = _Told(self._note)
        session = self._open.enter_context(session_on(self._stored, self._where, told, self._balancing))
        self._scheduler = Scheduler(session, speculate=self._speculate)
        return self

    def __exit__(self, *_: object) -> None:
        self._scheduler = None
        self._open.close()

    def generate(
        self,
        prompt: str | Sequence[int],
        tokens: int | None = None,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        each: Each | None = None,
    ) -> Answer:
        """Answer one prompt, a text or its token ids.

        `tokens` None: 128, or what fits. `each` is called with a token as soon as it is final, and the text that it
        adds; False ends the answer. Raises RunError R1xx for what cannot be asked; an answer that cannot be finished
        raises what ended it.
        """
        scheduler = self._opened()
        if (isinstance(prompt, str) or stop) and self._no_text:
            raise self._no_text
        ids = self._encoded(prompt)
        text = _Text(self._tokenizer, stop, ids, self._stored.record.model.eos_token_ids, each)
        sampling = Sampling(temperature, top_k, top_p, seed)
        result = scheduler.run_until(scheduler.submit(Request(ids, tokens, sampling, text.take)))
        return Answer(
            **{field.name: getattr(result, field.name) for field in fields(result)}, text=text.whole()
        )

    @property
    def moves(self) -> Sequence[Move]:
        """The changes of stages so far, the newest 1000."""
        return tuple(self._scheduler.session.moves) if self._scheduler else ()

    @property
    def readings(self) -> Readings:
        """What devices and links took lately: medians, `measured` in `--json`. Raises RunError R108 when not open."""
        return self._opened().session.readings

    def _opened(self) -> Scheduler:
        if self._scheduler is None:
            raise RunError("R108", "this session is not open: use it in a `with`")
        return self._scheduler

    def _encoded(self, prompt: str | Sequence[int]) -> list[int]:
        if isinstance(prompt, str):
            return self._tokenizer.encode(prompt) if self._tokenizer else []
        return [int(token) for token in prompt]


class _Text:
    """An answer's text as it comes, for `each`."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        stops: Sequence[str],
        ids: Sequence[int],
        ends: Sequence[int],
        each: Each | None,
    ) -> None:
        self._stream = Stream(tokenizer, stops, ids) if tokenizer else None
        self._ends = frozenset(ends)
        self._each = each

    def take(self, token: int) -> bool:
        piece = self._stream.push(token) if self._stream and token not in self._ends else ""
        go_on = self._each is None or self._each(token, piece) is not False
        return go_on and not (self._stream and self._stream.stopped)

    def whole(self) -> str | None:
        if self._stream is None:
            return None
        self._stream.finish()
        return self._stream.text


@dataclass(frozen=True)
class _Told:
    """What a session says of itself, for the caller's `note`."""

    note: Note

    def progress(self, done: int, total: int) -> None:
        """Weights that are read, of which nobody is told."""


def _tokenizer_of(stored: StoredSlice) -> tuple[Tokenizer | None, RunError | None]:
    """The tokenizer, or why there is no text."""
    try:
        tokenizer = read_tokenizer(stored)
    except RunError as error:
        if error.code not in (NO_TOKENIZER, UNREADABLE):
            raise
        return None, error
    missing = "this bundle has no tokenizer: give token ids"
    return tokenizer, None if tokenizer else RunError(NO_TOKENIZER, missing)
