"""The terminal: text and results on stdout, everything else on stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
import msgspec

from llrun.requests.request import Result

MIB = 1 << 20


class Console:
    """`quiet`: nothing but the final object goes to stdout (--json)."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._percent = -1

    def show(self, text: str) -> None:
        """A piece of the answer, at once."""
        if text and not self._quiet:
            click.echo(text, nl=False)

    def note(self, text: str) -> None:
        click.echo(text, err=True)

    def silent(self, text: str) -> None:
        """A note that somebody else gives."""

    def progress(self, done: int, total: int) -> None:
        """A line that is overwritten, on a terminal only."""
        percent = done * 100 // max(total, 1)
        if self._terminal and percent != self._percent:
            self._percent = percent
            end = "\r\x1b[K" if percent == 100 else ""
            click.echo(f"\rreading weights {percent}% of {total / MIB:.0f} MiB{end}", nl=False, err=True)

    def ask(self) -> str | None:
        """A line of the user, None at the end of input."""
        try:
            return input("> ")
        except EOFError:
            return None

    def figures(self, result: Result) -> None:
        """One line of what a request took."""
        first = "no token" if result.ttft_s is None else f"first token after {result.ttft_s:.3f} s"
        rate = "" if result.tpot_s is None else f", then {1 / result.tpot_s:.1f} tokens/s"
        memory = ", ".join(
            f"{name} {figures.peak_memory_bytes / MIB:.0f} MiB" for name, figures in result.devices.items()
        )
        self.note(
            f"[{result.prompt_tokens} prompt tokens, {first}{rate}"
            f" ({len(result.tokens)} tokens); memory {memory}]"
        )

    def results(self, answers: Sequence[tuple[Result, str | None]]) -> None:
        """The one JSON object: the last answer's fields, and all answers as `results` when several."""
        records = [_record(result, text) for result, text in answers]
        whole = {**records[-1], "results": records} if len(records) > 1 else records[-1]
        click.echo(msgspec.json.encode(whole).decode())


def _record(result: Result, text: str | None) -> dict[str, object]:
    return {
        "tokens": result.tokens,
        "text": text,
        "ttft_s": result.ttft_s,
        "tpot_s": result.tpot_s,
        "prompt_tokens": result.prompt_tokens,
        "devices": {name: msgspec.to_builtins(figures) for name, figures in result.devices.items()},
    }
