"""What one sum of a group takes, beside plain sockets, and in delays of the links.

    python benchmarks/all_reduce.py [--processes 2,3,4,8] [--bytes 16384] [--tokens 60]
    python benchmarks/all_reduce.py --delays 1,5,10 --processes 8        # milliseconds one way; root
    python benchmarks/all_reduce.py --choices all                        # is the planner's choice the fastest? root

A sum's time is that of a token through 33 blocks of a group less one through a single block, over 32, by the runtime's
own sessions with numpy for kernels; `plain` is the same exchange by blocking sockets in a loop. Every process has a
core of its own as far as there are so many: with more, figures without a delay are of shared cores, and say little.
With `--choices` every kind is measured in settings of delay, rate, size and processes, and what the planner's formula
makes of the setting is told beside it; it ends with 1 where the kind of least predicted time is over 5 % slower than
the fastest.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click
from shared.bare_sums import TREE, Bare
from shared.bare_sums import words as bare_words
from shared.fleet import Loopback, Places
from shared.machines import Link, Machines, why_not
from shared.sum_chain import Chain
from shared.sum_chain import words as chain_words

from llrun.programs.sums import sum_seconds
from llrun.schema import AllReduceKind

HERE = Path(__file__).parent
WARM = 5  # tokens, and plain sums, that do not count
TIMEOUT_S = 300.0
FAST, SLOW = 1.25e8, 1.25e7  # bytes a second
SMALL, LARGE = 16 << 10, 512 << 10  # bytes
ENOUGH = 1.05  # the planner's choice over the fastest: what is within it is no difference


@click.command()
@click.option("--processes", default="2,3,4,8", show_default=True)
@click.option("--kinds", default="star,direct,ring", show_default=True)
@click.option("--bytes", "size_bytes", default=16384, show_default=True)
@click.option("--tokens", default=60, show_default=True)
@click.option("--sums", default=32, show_default=True)
@click.option("--alone", is_flag=True, help="Before all else that wants a core; root.")
@click.option("--choices", default="", help="Numbers of settings with commas, or all; root.")
@click.option("--delays", default="", help="Of each link one way, in milliseconds; root.")
def main(
    processes: str,
    kinds: str,
    size_bytes: int,
    tokens: int,
    sums: int,
    alone: bool,
    choices: str,
    delays: str,
) -> None:
    """Measure sums by every kind, and print a table."""
    counts, names = [int(each) for each in processes.split(",")], kinds.split(",")
    what = size_bytes // 4, sums, tokens
    first = (
        ["nice", "-n", "-19"] if delays or choices else ["chrt", "-f", "5"]
    )  # a group of cgroup v1 lets none be real-time
    before = first if alone else []
    if (delays or choices) and (reason := why_not(delayed=True)):
        raise click.ClickException(reason)
    if choices:
        numbers = range(1, len(SETTINGS) + 1) if choices == "all" else map(int, choices.split(","))
        titles = " | ".join(f"{kind}, ms (predicted)" for kind in AllReduceKind)
        click.echo(f"| setting | links one way | size | processes | {titles} | taken | as quick as any |")
        click.echo(f"|{'---|' * 9}")
        sys.exit(not all([judge(number, before) for number in numbers]))
    if not delays:
        click.echo("| processes | kind | a sum, us | plain, us | ratio |\n|---|---|---|---|---|")
        for count in counts:
            for kind in names:
                ours, plain = measure(Loopback(_names(count)), count, kind, what, before)
                click.echo(
                    f"| {count} | {kind} | {ours * 1e6:.0f} | {plain * 1e6:.0f} | {ours / plain:.1f} |"
                )
        return
    click.echo("| delay, ms | processes | kind | a sum, delays | plain, delays |\n|---|---|---|---|---|")
    for delay_s in (float(each) / 1000 for each in delays.split(",")):
        for count in counts:
            for kind in (*names, TREE):
                with Machines(_names(count), Link(latency_s=delay_s / 2, large=True)) as machines:
                    ours, plain = measure(machines, count, kind, what, before)
                said = f"{ours / delay_s:.2f}" if ours else "-"
                click.echo(f"| {delay_s * 1000:g} | {count} | {kind} | {said} | {plain / delay_s:.2f} |")


@dataclass(frozen=True)
class Setting:
    """Links of one way's delay and rate, and what is summed among how many. `last`: delay and rate of the last
    device's links, where they differ."""

    delay_s: float
    bytes_per_s: float
    size_bytes: int
    processes: int
    last: tuple[float, float] | None = None

    def predicted_s(self, kind: AllReduceKind) -> float:
        """By the planner's formula."""
        names = _names(self.processes)

        def ends(source: str, to: str) -> tuple[float, float]:
            slow = self.last is not None and names[-1] in (source, to)
            delay_s, rate = self.last if slow and self.last else (self.delay_s, self.bytes_per_s)
            return delay_s, 1 / rate

        return sum_seconds(kind, names, 0, self.size_bytes, ends)

    def machines(self) -> Machines:
        """A way from one device to another has half of each one's delay, and the rate of the slower one."""
        names, link = _names(self.processes), Link(self.bytes_per_s, self.delay_s / 2, large=True)
        if self.last is None:
            return Machines(names, link)
        delay_s, rate = self.last
        return Machines(names, link, {names[-1]: Link(rate, delay_s - self.delay_s / 2, large=True)})

    @property
    def words(self) -> str:
        last = f", the last {self.last[0] * 1e3:g} ms, {self.last[1] / 1e6:g} MB/s" if self.last else ""
        links = f"{self.delay_s * 1e3:g} ms, {self.bytes_per_s / 1e6:g} MB/s{last}"
        return f"{links} | {self.size_bytes >> 10} KiB | {self.processes}"


SETTINGS = (
    *(Setting(delay_s, FAST, SMALL, count) for count in (3, 6) for delay_s in (0.001, 0.005, 0.01)),
    *(Setting(delay_s, FAST, LARGE, 3) for delay_s in (0.005, 0.01)),
    Setting(0.01, FAST, LARGE, 6),
    Setting(0.001, SLOW, LARGE, 3),
    Setting(0.001, FAST, SMALL, 4, (0.005, SLOW / 10)),
    Setting(0.005, FAST, SMALL, 6, (0.005, SLOW / 10)),
)


def judge(number: int, before: list[str]) -> bool:
    """Measure every kind in a setting, and say whether the one that the planner takes is as quick as any."""
    it = SETTINGS[number - 1]
    found: dict[AllReduceKind, float] = {}
    for kind in AllReduceKind:
        with it.machines() as machines:
            found[kind] = _sum_s(machines, it.processes, kind, (it.size_bytes // 4, 6, 14), before)
    guesses = {kind: it.predicted_s(kind) for kind in AllReduceKind}
    taken = min(guesses, key=lambda kind: guesses[kind])
    right = found[taken] <= ENOUGH * min(found.values())
    figures = (f"{found[kind] * 1e3:.1f} ({guesses[kind] * 1e3:.1f})" for kind in AllReduceKind)
    click.echo(f"| {number} | {it.words} | {' | '.join(figures)} | {taken} | {'yes' if right else 'NO'} |")
    return right


def measure(
    places: Places, count: int, kind: str, what: tuple[int, int, int], before: list[str]
) -> tuple[float, float]:
    """Seconds of a sum by the runtime, 0 for a kind that it lacks, and by plain sockets. `before`: what commands
    begin with."""
    width, _, tokens = what
    addresses = tuple(places.address(name) for name in _names(count))
    ours = _sum_s(places, count, kind, what, before) if kind in tuple(AllReduceKind) else 0.0
    plain = _bare_s(places, Bare(addresses, kind, 0, tokens * 4 + WARM, width), before)
    return ours, plain


def _sum_s(places: Places, count: int, kind: str, what: tuple[int, int, int], before: list[str]) -> float:
    """Seconds of a sum by the runtime."""
    (width, sums, tokens), names = what, tuple(_names(count))
    addresses = tuple(map(places.address, names))
    long, short = (
        _chain_s(places, Chain(names, addresses, kind, 0, number, width), tokens, before)
        for number in (sums + 1, 1)
    )
    return (long - short) / sums


def _names(count: int) -> list[str]:
    return [f"d{rank}" for rank in range(count)]


def _chain_s(places: Places, chain: Chain, tokens: int, before: list[str]) -> float:
    """Seconds of a token, the median."""
    head, *workers = chain.devices
    command = [*before, sys.executable, "-m", "shared.sum_chain", chain_words(chain)]
    with ExitStack() as stack:
        for name in workers:
            started = _start(stack, places, name, [*command, name])
            assert started.stdout
            started.stdout.readline()
        driver = _start(stack, places, head, [*command, head, str(tokens + WARM)])
        return statistics.median(json.loads(driver.communicate(timeout=TIMEOUT_S)[0])[WARM:])


def _bare_s(places: Places, bare: Bare, before: list[str]) -> float:
    """Seconds of a sum by plain sockets, the median."""
    with ExitStack() as stack:
        running = [
            _start(
                stack,
                places,
                name,
                [*before, sys.executable, "-m", "shared.bare_sums", bare_words(bare), str(rank)],
            )
            for rank, name in enumerate(_names(len(bare.addresses)))
        ]
        return statistics.median(json.loads(running[0].communicate(timeout=TIMEOUT_S)[0])[WARM:])


def _start(stack: ExitStack, places: Places, name: str, words: Sequence[str]) -> subprocess.Popen[str]:
    process = subprocess.Popen(places.command(name, words), cwd=HERE, stdout=subprocess.PIPE, text=True)
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process


if __name__ == "__main__":
    main()
