"""The head of a fleet as a process (driver.py), asked for several answers at once and watched token by token."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from shared.bundles import head_of
from shared.fleet import Fleet

ANSWER_S = 180.0


class Silent(Exception):
    """Nothing came from the head in time, or it ended: what it said last."""


@dataclass(frozen=True)
class Question:
    """A request: token ids, how many tokens are wanted, and how they are chosen."""

    ids: Sequence[int]
    n: int
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Token:
    """A token of the `sequence`-th question; `at_s` by CLOCK_MONOTONIC."""

    sequence: int
    token: int
    at_s: float


@dataclass(frozen=True)
class Answers:
    """Of each question its tokens; `errors`: of those that failed; `compute_s`: of each device, of all questions;
    `tokens`: as they came; `moves`: of the session so far."""

    texts: Sequence[Sequence[int]]
    errors: Sequence[str]
    compute_s: Mapping[str, float]
    tokens: Sequence[Token]
    moves: Sequence[dict[str, Any]]

    def times(self, sequence: int) -> list[float]:
        return [one.at_s for one in self.tokens if one.sequence == sequence]


@dataclass
class _Round:
    tokens: list[Token] = field(default_factory=list)
    answers: dict[str, Any] | None = None


class Head:
    """The head of `fleet`'s bundle. `options`: as for llrun. Use as a context manager."""

    def __init__(self, fleet: Fleet, *options: str, log: Path | None = None) -> None:
        driver = str(Path(__file__).with_name("driver.py"))
        words = [sys.executable, "-P", driver, str(fleet.bundle), *fleet.peers, *options]
        self._log = log
        self._said = log.open("wb") if log else None
        self.process = subprocess.Popen(
            fleet.places.command(head_of(fleet.bundle), words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said or subprocess.DEVNULL,
            text=True,
        )
        self._news = threading.Condition()
        self._round = _Round()
        self._ended: str | None = None
        self.ready_s: float | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self) -> Head:
        try:
            self.await_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._ended is None:
            self.close()
        else:
            self.kill()

    def await_ready(self) -> None:
        self._until(lambda: self.ready_s is not None)

    def ask(self, questions: Sequence[Question]) -> None:
        """Ask all at once."""
        self._round = _Round()
        assert self.process.stdin
        self.process.stdin.write(json.dumps([asdict(one) for one in questions]) + "\n")
        self.process.stdin.flush()

    def await_tokens(self, count: int) -> None:
        """Wait until `count` tokens have come since the questions were asked, or all are answered."""
        asked = self._round
        self._until(lambda: len(asked.tokens) >= count or asked.answers is not None)

    @property
    def answered(self) -> bool:
        return self._round.answers is not None

    @property
    def tokens(self) -> list[Token]:
        """Those that have come since the questions were asked."""
        return list(self._round.tokens)

    def answers(self, within_s: float = ANSWER_S) -> Answers:
        """Wait until every question is answered."""
        asked = self._round
        self._until(lambda: asked.answers is not None, within_s)
        assert asked.answers is not None
        found = asked.answers["answers"]
        errors = [one["error"] for one in found if "error" in one]
        spent: Counter[str] = Counter()
        for one in found:
            spent.update(one.get("compute_s", {}))
        texts = [one["tokens"] for one in found]
        return Answers(texts, errors, spent, asked.tokens, asked.answers["moves"])

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self._gone()

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self._gone()

    def _gone(self) -> None:
        self.process.wait()
        if self._said:
            self._said.close()

    def _until(self, reached: Callable[[], bool], within_s: float = ANSWER_S) -> None:
        until = time.monotonic() + within_s
        with self._news:
            while not reached():
                if self._ended is not None:
                    raise Silent(f"the head ended: {self._ended}")
                if not self._news.wait(until - time.monotonic()):
                    raise Silent(
                        f"nothing new from the head for {within_s:g} s; {len(self._round.tokens)} tokens came"
                    )

    def _listen(self) -> None:
        assert self.process.stdout
        ended = ""
        for line in self.process.stdout:
            said = json.loads(line)
            with self._news:
                if "ready" in said:
                    self.ready_s = said["ready"]
                elif "token" in said:
                    self._round.tokens.append(Token(said["sequence"], said["token"], said["at"]))
                elif "answers" in said:
                    self._round.answers = said
                else:
                    ended = said["ended"]
                self._news.notify_all()
        with self._news:
            self._ended = ended or f"exit code {self.process.wait()}"
            self._news.notify_all()
