"""The terminal: text and results on stdout, everything else on stderr, control characters on neither."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
import msgspec

from llrun.errors import RunError, printable
from llrun.faces import visible

if TYPE_CHECKING:
    from llrun.head.moves import Move
    from llrun.head.readings import Readings
    from llrun.requests.request import Result

MIB = 1 << 20
PROMPT, MORE = "> ", "... "
# What a terminal keeps of a line that is read by lines; the rest it throws away unseen.
TERMINAL_LINE_BYTES = 4095


class Console:
    """`quiet`: nothing but the final object goes to stdout (--json)."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._to_terminal = sys.stdout is not None and sys.stdout.isatty()
        self._percent = -1
        self._in_line = False  # the last piece of an answer has not ended its line

    def show(self, text: str) -> None:
        """A piece of the answer, at once: as it is to a file, without what a terminal would obey to one."""
        if text and not self._quiet:
            # Without `color`, click would leave out of a file what looks like a terminal's colours.
            click.echo(visible.text(text) if self._to_terminal else text, nl=False, color=True)
            self._in_line = not text.endswith("\n")

    def note(self, text: str) -> None:
        """A message, one line on stderr: where a terminal shows both, not within a line of the answer."""
        if self._in_line and self._to_terminal and self._terminal:
            click.echo(err=True)
            self._in_line = False
        click.echo(printable(text), err=True)

    def silent(self, text: str) -> None:
        """A note that somebody else gives."""

    def table(self, text: str) -> None:
        """Lines of our own for stdout."""
        click.echo(visible.text(text))

    def json(self, value: object) -> None:
        """One JSON object or list on stdout."""
        click.echo(visible.json(msgspec.json.encode(value).decode()))

    def progress(self, done: int, total: int) -> None:
        """A line that is overwritten, on a terminal only."""
        percent = done * 100 // max(total, 1)
        if self._terminal and percent != self._percent:
            self._percent = percent
            end = "\r\x1b[K" if percent == 100 else ""
            click.echo(f"\rreading weights {percent}% of {total / MIB:.0f} MiB{end}", nl=False, err=True)

    @contextmanager
    def conversation(self) -> Iterator[None]:
        """Keep the terminal from reading by lines meanwhile, which would cut what is pasted into an answer."""
        if not self._edits():
            yield
            return
        import termios

        before = termios.tcgetattr(sys.stdin)
        during = termios.tcgetattr(sys.stdin)
        during[3] &= ~termios.ICANON
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, during)
        try:
            yield
        finally:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)

    def ask(self, prompt: str = PROMPT) -> str | None:
        """A line of the user, or several that were pasted at once; None at the end of input.

        Raises RunError R107 for what is not text, or longer than the terminal lets through.
        """
        try:
            if self._edits():
                return input(prompt)
            click.echo(prompt, nl=False, err=not self._to_terminal)
            line = sys.stdin.readline()
        except EOFError:
            return None
        except UnicodeDecodeError as error:
            raise RunError("R107", f"this line is not UTF-8 text: {error}") from error
        except KeyboardInterrupt:
            click.echo()  # what comes next begins a line
            raise
        if len(line.encode(errors="surrogateescape")) >= TERMINAL_LINE_BYTES:
            raise RunError(
                "R107",
                f"the terminal cuts lines at {TERMINAL_LINE_BYTES} bytes, and this one is as long: give it by"
                " --prompt, or write it to standard input",
            )
        return line.removesuffix("\n") if line else None

    def _edits(self) -> bool:
        """Whether lines are read by an editor, which takes them at any length, and tabs as they are."""
        if not (self._to_terminal and sys.stdin is not None and sys.stdin.isatty()):
            return False
        try:
            import readline
        except ImportError:  # a Python that was built without it
            return False
        readline.parse_and_bind("tab: self-insert")
        if (
            os.environ.get("TERM", "dumb") != "dumb"
        ):  # one that tells what is pasted: lines of it are one message
            readline.parse_and_bind("set enable-bracketed-paste on")
        return True

    def figures(self, result: Result) -> None:
        """One line of what a request took."""
        first = "no token" if result.ttft_s is None else f"first token after {result.ttft_s:.3f} s"
        rate = "" if result.tpot_s is None else f", then {1 / result.tpot_s:.1f} tokens/s"
        stopped = ", stopped" if result.cancelled else ""
        guessed = f", {result.guessed.right} of them guessed" if result.guessed.right else ""
        memory = ", ".join(
            f"{name} {figures.peak_memory_bytes / MIB:.0f} MiB" for name, figures in result.devices.items()
        )
        self.note(
            f"[{result.prompt_tokens} prompt tokens, {first}{rate}"
            f" ({len(result.tokens)} tokens{guessed}{stopped}); memory {memory}]"
        )

    def results(self, answers: Sequence[tuple[Result, str | None]], readings: Readings | None) -> None:
        """The one JSON object: the last answer's fields, what the session measured, None where there was none, and all
        answers as `results` when several."""
        records = [_record(result, text) for result, text in answers]
        whole = {**records[-1], "measured": _measured(readings) if readings else None}
        self.json({**whole, "results": records} if len(records) > 1 else whole)


def _record(result: Result, text: str | None) -> dict[str, object]:
    return {
        "tokens": result.tokens,
        "text": text,
        "ttft_s": result.ttft_s,
        "tpot_s": result.tpot_s,
        "prompt_tokens": result.prompt_tokens,
        "token_s": result.token_s,
        "guessed": result.guessed._asdict(),
        "moves": [_move(move) for move in result.moves],
        "devices": {name: msgspec.to_builtins(figures) for name, figures in result.devices.items()},
    }


def _move(move: Move) -> dict[str, object]:
    record: dict[str, object] = msgspec.to_builtins(move)
    del record["at_s"]  # a clock that only this process has
    return record


def _measured(readings: Readings) -> dict[str, object]:
    links = [
        {
            "from": link.source,
            "to": link.destination,
            "latency_s": link.latency_s,
            "bytes_per_s": link.bytes_per_s,
        }
        for link in readings.links
    ]
    return {"devices": msgspec.to_builtins(readings.devices), "links": links}
