"""Chat templates: from messages to the text that a model was trained to go on from."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from llrun.errors import INTERNAL, USAGE, RunError
from llrun.requests import rendering

NO_JINJA, UNREADABLE_TEMPLATE, REFUSED_MESSAGES = "R130", "R131", "R132"
FAILED_TEMPLATE, TEMPLATE_BOUNDS = "R133", "R134"
DEFAULT, WITH_TOOLS = "default", "tool_use"  # as files with several templates name them
START_S = 30.0
KEPT = (
    "TZ",
    "LANG",
    "LC_ALL",
    "LC_TIME",
    "LD_LIBRARY_PATH",
)  # of this process's environment, which may hold keys
REASONING = ("reasoning_content", "thinking", "reasoning")
# A message as clients of chat APIs have it: `role`, `content`, and what else a template may read, JSON values all.
Message = Mapping[str, Any]


@dataclass(frozen=True)
class Limits:
    """Of one rendering: its seconds, the memory of the process that does it, and the characters that come out."""

    seconds: float = 5.0
    memory_bytes: int = 512 << 20
    characters: int = 4 << 20


class ChatTemplate:
    """A model's template, rendered in a process of its own: `rendering` says how and why.

    `source`: where it is from, for errors. `templates`: by name, `default` among them; with tools `tool_use` is used
    where there is one. `tokens`: the texts of special tokens, which a template reads by names such as bos_token.

    May be used from several threads. The process starts with the first text or `check`, and is started again when one
    had to be ended. Close it, or use it as a context manager.
    """

    def __init__(
        self,
        source: str,
        templates: Mapping[str, str],
        tokens: Mapping[str, Any] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.source = source
        self._templates = dict(templates)
        self._tokens = dict(tokens or {})
        self._limits = limits or Limits()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ChatTemplate:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self) -> None:
        """Read the template. Raises RunError R130 (jinja2 is missing), R131 (it is no template) or R134."""
        with self._lock:
            self._start()

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of `messages`, the same as of transformers' `apply_chat_template`; with `add_generation_prompt` up
        to where the assistant's answer begins. `tools`: JSON schemas of functions. `variables`: what else the template
        reads, such as enable_thinking.

        Raises RunError as `check` does; R132 with the template's own words where it refuses these messages, R133 where
        it fails, R134 where it takes too long, too much memory, or makes too much text.
        """
        name = WITH_TOOLS if tools and WITH_TOOLS in self._templates else DEFAULT
        values = {
            **self._tokens,
            **(variables or {}),
            "messages": [_as_read(message) for message in messages],
            "tools": None if tools is None else list(tools),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        with self._lock:
            self._start()
            return str(self._ask({"template": name, "variables": values}, self._limits.seconds)["text"])

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    # --- the process ---

    def _start(self) -> None:
        if self._process and self._process.poll() is None:
            return
        self._end()
        # Without the terminal's signals: an interrupt there is for an answer.
        self._process = subprocess.Popen(
            [sys.executable, "-m", rendering.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            start_new_session=True,
        )
        start = {
            "templates": self._templates,
            "limit_s": self._limits.seconds,
            "limit_bytes": self._limits.memory_bytes,
            "limit_characters": self._limits.characters,
        }
        try:
            self._ask(start, START_S)
        except RunError:
            self._end()
            raise

    def _ask(self, request: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """A request's answer. Raises RunError for a fault; a process that gives none is ended."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(OSError):  # it has ended, which reading tells
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        try:
            line = self._line(process.stdout.fileno(), time.monotonic() + limit_s)
        except BaseException:  # an interrupt: what it still answers would be taken for the next one's
            self._end()
            raise
        if line is None:
            self._end()
            raise self._error(rendering.BOUNDS, f"it takes longer than {limit_s:g} s")
        if not line.endswith(b"\n"):
            code = process.wait()
            self._end()
            late = f"it takes longer than {self._limits.seconds:g} s"
            ended = f"the process that renders it ended (exit code {code})"
            raise self._error(rendering.BOUNDS, late if code == -signal.SIGALRM else ended)
        answer: dict[str, Any] = json.loads(line)
        if "fault" in answer:
            raise self._error(answer["fault"], answer["reason"])
        return answer

    def _line(self, source: int, until: float) -> bytes | None:
        """What comes, up to a newline or the end; None when it is not there in time."""
        line = bytearray()
        while not line.endswith(b"\n"):
            if not select.select([source], [], [], max(until - time.monotonic(), 0))[0]:
                return None
            piece = os.read(source, 1 << 16)
            if not piece:
                break
            line += piece
        return bytes(line)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                with suppress(BrokenPipeError):  # what was written and not read
                    pipe.close()

    def _error(self, fault: str, reason: str) -> RunError:
        code, words, exit_code = _FAULTS[fault]
        return RunError(code, words.format(source=self.source, reason=reason or "no reason"), exit_code)


_FAULTS = {
    rendering.MISSING: (
        NO_JINJA,
        "{source} needs the package jinja2, of 3.1.6 or newer: {reason}: pip install 'llrun[head]'",
        USAGE,
    ),
    rendering.SYNTAX: (
        UNREADABLE_TEMPLATE,
        "{source} is no chat template: {reason}. Give another with --chat-template FILE",
        USAGE,
    ),
    rendering.REFUSED: (REFUSED_MESSAGES, "{source} refuses this conversation: {reason}", USAGE),
    rendering.FAILED: (
        FAILED_TEMPLATE,
        "{source} fails: {reason}. Give another with --chat-template FILE",
        INTERNAL,
    ),
    rendering.BOUNDS: (
        TEMPLATE_BOUNDS,
        "{source} is not rendered: {reason}. Give another with --chat-template FILE",
        INTERNAL,
    ),
}


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _as_read(message: Message) -> dict[str, Any]:
    """A message as templates expect it: a key without a value is left out, because many show it as the word None, and
    reasoning is there under the names that they read it by."""
    kept = {key: value for key, value in message.items() if value is not None}
    reasoning = next((kept[key] for key in REASONING if key in kept), None)
    return kept if reasoning is None else {"thinking": reasoning, **kept, "reasoning_content": reasoning}
