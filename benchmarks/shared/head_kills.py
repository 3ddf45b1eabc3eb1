"""A head that is killed and started again with its session file: whether the answer goes on as it would have been."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.bundles import head_of
from shared.fleet import Fleet
from shared.losses import Case

_POLL_S = 0.002
_RUN_S = 120.0


@dataclass(frozen=True)
class HeadOutcome:
    """`tokens_kept`: that the file had when the head was gone. `next_s`: from the kill until the first token after
    those was in the file."""

    case: Case
    same: bool
    tokens_kept: int
    next_s: float | None
    error: str

    @property
    def ended(self) -> bool:
        return not self.error

    @property
    def ended_well(self) -> bool:
        return self.same and self.ended

    @property
    def text(self) -> str:
        wrong = self.error or ("" if self.same else "another text")
        return f"{self.case}, killed after {self.tokens_kept} tokens: {wrong or 'well'}"


def words(fleet: Fleet, case: Case, *options: str) -> list[str]:
    """The command that answers a case's questions one after the other, all drawn with the case's seed."""
    asked = case.questions()
    prompts = [word for one in asked for word in ("--prompt-ids", ",".join(map(str, one.ids)))]
    found = [sys.executable, "-m", "llrun", str(fleet.bundle), *fleet.peers, "--no-verify", *prompts]
    found += ["-n", str(case.new_tokens), "--temperature", "1", "--seed", str(case.seed), "--json", *options]
    return fleet.places.command(head_of(fleet.bundle), found)


def texts(said: str) -> list[list[int]]:
    found = json.loads(said)
    return [one["tokens"] for one in found.get("results", [found])]


def undisturbed(fleet: Fleet, case: Case) -> list[list[int]]:
    done = subprocess.run(
        words(fleet, case), capture_output=True, text=True, timeout=_RUN_S, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return texts(done.stdout)


def lose_head(fleet: Fleet, case: Case, expected: Sequence[Sequence[int]], file: Path) -> HeadOutcome:
    """Kill the head once the file holds `case.token` lines more than what was asked, and run the command again."""
    file.unlink(missing_ok=True)
    command = words(fleet, case, "--session", str(file))
    first = _start(command)
    try:
        _await_lines(file, case.token, first)
        time.sleep(random.Random(case.seed).random() * 0.01)
    finally:
        first.kill()
        first.communicate()
    lost_s, kept = time.monotonic(), _lines(file)
    second = _start(command)
    _await_lines(file, kept + 1, second)
    next_s = time.monotonic() - lost_s
    out, err = second.communicate(timeout=_RUN_S)
    if second.returncode:
        return HeadOutcome(case, False, kept, None, err.strip())
    same = texts(out) == [list(text) for text in expected]
    return HeadOutcome(case, same, kept, next_s, "")


def _start(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def _await_lines(file: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Until the file has so many lines or the process has ended."""
    until = time.monotonic() + _RUN_S
    while _lines(file) < count and process.poll() is None and time.monotonic() < until:
        time.sleep(_POLL_S)
