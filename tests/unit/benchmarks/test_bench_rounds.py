"""Rounds, ratios and the programs that are measured."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from shared.processes import Failed, resident, run
from shared.rounds import Contest, Rates, Series, play, ratios, spread

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def _program(log: list[str], name: str, rates: list[float]) -> Callable[[], Rates]:
    given = iter(rates)

    def turn() -> Rates:
        log.append(name)
        return {"tg8": next(given)}

    return turn


def test_programs_take_turns_in_alternating_order_with_the_read_rate_between() -> None:
    log: list[str] = []

    def read() -> float:
        log.append("read")
        return 40.0

    programs = {"a": _program(log, "a", [1, 2, 3]), "b": _program(log, "b", [4, 5, 6])}
    told: list[str] = []
    series = play(Contest("q4", programs, read), 3, told.append)
    assert log == ["a", "read", "b", "b", "read", "a", "a", "read", "b"]
    assert series.rates == {"a": {"tg8": [1, 2, 3]}, "b": {"tg8": [4, 5, 6]}}
    assert series.reads == [40.0] * 3
    assert told[0] == "round 1/3: q4: a: tg8 1.0"


def test_ratios_are_taken_within_a_round() -> None:
    # The machine halves its speed in the second round: the ratio does not see it, the medians' ratio would.
    assert ratios([15, 8, 16], [10, 5, 10]) == spread([1.5, 1.6, 1.6])
    assert ratios([3], [2]).median == 1.5


def test_a_ratio_of_different_numbers_of_rounds_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        ratios([1, 2], [1])


def test_the_best_of_several_is_the_one_with_the_highest_median() -> None:
    series = Series({"a": {"t": [1, 9, 1]}, "b": {"t": [2, 2, 2]}})
    assert series.best(["a", "b"], "t") == "b"


def test_resident_memory_by_kind() -> None:
    assert resident("Name:\tx\nRssAnon:\t   12 kB\nRssFile:\t    3 kB\n") == (12288, 3072)
    assert resident("Name:\tx\n") == (0, 0)


def test_a_run_gives_output_and_peak_memory() -> None:
    code = "x = bytearray(60_000_000); import time; time.sleep(0.2); print('done')"
    done = run([sys.executable, "-c", code], watch=True)
    assert done.stdout == "done\n"
    assert done.peak_bytes > 60_000_000
    assert 60_000_000 < done.anonymous_bytes <= done.peak_bytes


def test_a_failed_run_says_what_it_wrote() -> None:
    with pytest.raises(Failed, match=r"^3: (.|\n)*broken$"):
        run([sys.executable, "-c", "import sys; sys.stderr.write('broken'); sys.exit(3)"])


def test_an_interrupt_leaves_no_process(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    inner = (
        f"import os, subprocess, time; p = subprocess.Popen(['sleep', '60']); open({str(pid_file)!r}, 'w')"
    )
    inner += ".write(f'{os.getpid()} {p.pid} '); time.sleep(60)"
    outer = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); from shared.processes import run; "
    child = subprocess.Popen([sys.executable, "-c", outer + f"run([sys.executable, '-c', {inner!r}])"],
                             stderr=subprocess.DEVNULL)  # fmt: skip
    deadline = time.monotonic() + 20
    while not (pid_file.exists() and pid_file.read_text().endswith(" ")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(2)
    child.wait(20)
    for pid in pid_file.read_text().split():
        while os.path.exists(f"/proc/{pid}") and _alive(pid):
            assert time.monotonic() < deadline, pid
            time.sleep(0.02)


def _alive(pid: str) -> bool:
    """False for a process that has ended and waits for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
