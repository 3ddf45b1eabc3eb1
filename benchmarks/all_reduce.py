"""What one sum of a group takes, beside plain sockets, and in delays of the links.

    python benchmarks/all_reduce.py [--processes 2,3,4,8] [--bytes 16384] [--tokens 60]
    python benchmarks/all_reduce.py --delays 1,5,10 --processes 8        # milliseconds one way; root

A sum's time is that of a token through 33 blocks of a group less one through a single block, over 32, by the runtime's
own sessions with numpy for kernels; `plain` is the same exchange by blocking sockets in a loop. Every process has a
core of its own as far as there are so many: with more, figures without a delay are of shared cores, and say little.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click
from shared.bare_sums import TREE, Bare
from shared.bare_sums import words as bare_words
from shared.fleet import Loopback, Places
from shared.machines import Link, Machines, why_not
from shared.sum_chain import Chain
from shared.sum_chain import words as chain_words

from llrun.schema import AllReduceKind

HERE = Path(__file__).parent
WARM = 5  # tokens, and plain sums, that do not count
TIMEOUT_S = 300.0


@click.command()
@click.option("--processes", default="2,3,4,8", show_default=True)
@click.option("--kinds", default="star,direct,ring", show_default=True)
@click.option("--bytes", "size_bytes", default=16384, show_default=True)
@click.option("--tokens", default=60, show_default=True)
@click.option("--sums", default=32, show_default=True)
@click.option("--alone", is_flag=True, help="Before all else that wants a core; root.")
@click.option("--delays", default="", help="Of each link one way, in milliseconds; root.")
def main(
    processes: str, kinds: str, size_bytes: int, tokens: int, sums: int, alone: bool, delays: str
) -> None:
    """Measure sums by every kind, and print a table."""
    counts, names = [int(each) for each in processes.split(",")], kinds.split(",")
    what = size_bytes // 4, sums, tokens
    first = (
        ["nice", "-n", "-19"] if delays else ["chrt", "-f", "5"]
    )  # a group of cgroup v1 lets none be real-time
    before = first if alone else []
    if not delays:
        click.echo("| processes | kind | a sum, us | plain, us | ratio |\n|---|---|---|---|---|")
        for count in counts:
            for kind in names:
                ours, plain = measure(Loopback(_names(count)), count, kind, what, before)
                click.echo(
                    f"| {count} | {kind} | {ours * 1e6:.0f} | {plain * 1e6:.0f} | {ours / plain:.1f} |"
                )
        return
    if reason := why_not(delayed=True):
        raise click.ClickException(reason)
    click.echo("| delay, ms | processes | kind | a sum, delays | plain, delays |\n|---|---|---|---|---|")
    for delay_s in (float(each) / 1000 for each in delays.split(",")):
        for count in counts:
            for kind in (*names, TREE):
                with Machines(_names(count), Link(latency_s=delay_s / 2, large=True)) as machines:
                    ours, plain = measure(machines, count, kind, what, before)
                said = f"{ours / delay_s:.2f}" if ours else "-"
                click.echo(f"| {delay_s * 1000:g} | {count} | {kind} | {said} | {plain / delay_s:.2f} |")


def measure(
    places: Places, count: int, kind: str, what: tuple[int, int, int], before: list[str]
) -> tuple[float, float]:
    """Seconds of a sum by the runtime, 0 for a kind that it lacks, and by plain sockets. `before`: what commands
    begin with."""
    width, sums, tokens = what
    addresses = tuple(places.address(name) for name in _names(count))
    ours = 0.0
    if kind in tuple(AllReduceKind):
        long, short = (
            _chain_s(places, Chain(tuple(_names(count)), addresses, kind, 0, number, width), tokens, before)
            for number in (sums + 1, 1)
        )
        ours = (long - short) / sums
    plain = _bare_s(places, Bare(addresses, kind, 0, tokens * 4 + WARM, width), before)
    return ours, plain


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
