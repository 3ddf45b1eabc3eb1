"""Several short runs of blocks a device instead of one, where weights come from disk: seconds a token.

    python benchmarks/rounds.py [--workers 3] [--rate 0.1] [--window 6] [--quant q4] [-n 24] [--rounds 2]

Needs root and control groups of version 1: each worker's reads are limited to so many GB a second. The TinyLlama-1.1B
shape with random weights on a head with the model's ends and workers over loopback, one thread each, with so many
blocks in memory at once. One plan has one run of blocks a worker, the other as many as the planner takes. Programs run
by turns; ratios are taken within a round. `bound`: what the slowest disk takes for its blocks of a token. A limit lets
some 0.1 s of reading pass after each pause, which is kind to a device that pauses: hence the slow disks.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
from shared.bundles import Device, Recipe, built, planned
from shared.disks import limited, why_not
from shared.fleet import Fleet, Loopback
from shared.machine import native_target, own_description
from shared.ours import parse_bench
from shared.processes import run
from shared.rounds import Contest, Rates, play, ratios, spread
from shared.tables import table

LAST = 45  # the block that is the output head
ENOUGH_BYTES = 6_000_000_000
HEADS = ("plan", "runs", "predicted, ms", "measured, ms", "least", "most", "times faster", "bound, ms")


class Disks(Loopback):
    """Devices over loopback, of which each command is preceded by what limits its reads."""

    def __init__(self, names: Sequence[str], before: Mapping[str, list[str]]) -> None:
        super().__init__(names)
        self._before = before

    def command(self, name: str, words: Sequence[str]) -> list[str]:
        return [*self._before.get(name, []), *words]


def recipe(workers: Sequence[str], quant: str, window: int, rate: float, pinned: bool) -> Recipe:
    """`pinned`: one run of whole layers each."""
    devices = [Device("head", ENOUGH_BYTES, disk=1e6)]  # so slow that it has the ends alone
    devices += [Device(name, ENOUGH_BYTES, disk=rate) for name in workers]
    edges = [1 + 2 * ((LAST - 1) // 2 * i // len(workers)) for i in range(len(workers) + 1)]
    pins = [f"--pin={edges[i]}:{edges[i + 1]}={name}" for i, name in enumerate(workers)]
    wishes = ["--window", str(window), "--spare", "none", "--context", "512", "--tensor-parallel", "off"]
    wishes += pins if pinned else ["--use-all"]
    return Recipe("tinyllama", quant, devices, target=native_target(), options=wishes)


@contextmanager
def disks(workers: Sequence[str], rate: float, on: Path) -> Iterator[Disks]:
    with ExitStack() as stack:
        yield Disks(
            ["head", *workers],
            {name: stack.enter_context(limited(rate, on, name)) for name in workers},
        )


def rates(bundle: Path, workers: Sequence[str], rate: float, new: int) -> Rates:
    """Tokens a second of one run of `llrun bench`."""
    with (
        disks(workers, rate, bundle) as places,
        tempfile.TemporaryDirectory() as folder,
        Fleet(bundle, places, Path(folder), ["--no-verify"]) as fleet,
    ):
        fleet.start()
        words = [sys.executable, "-m", "llrun", "bench", str(bundle / "devices" / "head"), *fleet.peers]
        sizes = ["-p", "0", "-n", str(new), "-r", "1", "-o", "json", "--no-verify", "--timeout", "600"]
        return parse_bench(run([*words, *sizes]).stdout)


def bound_s(bundle: Path, workers: Sequence[str], rate: float) -> float:
    """Of the worker that reads the most: what streams there, over the disk's rate."""
    found = json.loads((bundle / "manifest.json").read_bytes())["envelope"]["devices"]
    sizes = [
        sum(
            block["weights_bytes"]
            for block in found[name]["blocks"]
            if block["id"] in found[name]["streamed"]
        )
        for name in workers
    ]
    return max(sizes) / rate


@click.command()
@click.option("--workers", default=3, show_default=True)
@click.option("--rate", default=0.1, show_default=True, help="GB a second of each worker's disk.")
@click.option("--window", default=6, show_default=True)
@click.option("--quant", default="q4", show_default=True)
@click.option("-n", "--new", default=24, show_default=True)
@click.option("--rounds", default=2, show_default=True)
def main(workers: int, rate: float, window: int, quant: str, new: int, rounds: int) -> None:
    """Time both plans."""
    if reason := why_not():
        raise SystemExit(reason)
    names, bytes_per_s = [f"w{i}" for i in range(workers)], rate * 1e9
    bundles = {
        name: built(recipe(names, quant, window, bytes_per_s, pinned))
        for name, pinned in (("one run", True), ("rounds", False))
    }

    def program(bundle: Path) -> Callable[[], Rates]:
        return lambda: rates(bundle, names, bytes_per_s, new)

    contest = Contest("plans", {name: program(path) for name, path in bundles.items()}, lambda: 0.0)
    series = play(contest, rounds, lambda text: click.echo(text, err=True))
    rows, (test,) = [], series.rates["one run"]
    for name, path in bundles.items():
        plan, speeds = planned(path), series.rates[name][test]
        times = spread([1e3 / speed for speed in speeds])
        runs = max(plan["devices"][worker]["rounds"] for worker in names)
        faster = ratios(speeds, series.rates["one run"][test]).median
        figures = [
            f"{value:.0f}" for value in (plan["tpot_s"] * 1e3, times.median, times.least, times.largest)
        ]
        rows.append(
            [name, str(runs), *figures, f"{faster:.2f}", f"{bound_s(path, names, bytes_per_s) * 1e3:.0f}"]
        )
    click.echo("\n".join([*own_description(), "", table(HEADS, rows, HEADS[:1])]))


if __name__ == "__main__":
    main()
