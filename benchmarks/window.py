"""Weights that stream from disk: the memory of devices, and how much of the reading hides behind the computing.

    python benchmarks/window.py [--quant q4] [--rates 0.4,1,2] [-r 3] [--memory/--no-memory]

Needs root and control groups of version 1: the processes' reads are limited. The TinyLlama-1.1B shape with random
weights. First its peak memory in f32 on four devices with a window of 2, against the plan and the unsplit model. Then,
on a head and a worker of one thread each, a token and a chunk of 128 tokens of prompt with all blocks in memory, and
with windows, at each rate of the disk: seconds, and what of the loading was hidden.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from shared.bundles import CACHE, Device, Recipe, built
from shared.disks import limited, why_not
from shared.processes import run
from shared.tables import table

CHUNK, NEW = 128, 16
LAST = 45  # the block that is the output head
ENOUGH_BYTES = 6_000_000_000
WORDS = ("device", "disk", "window", "of")


@dataclass(frozen=True)
class Times:
    """Seconds of a chunk and of a token, the mean of the runs."""

    chunk_s: float
    token_s: float


@dataclass(frozen=True)
class Line:
    """Seconds: what loading takes at the disk's rate, what is computed without a window, and what is measured with."""

    what: str
    window: int
    rate: float
    loading_s: float
    computing_s: float
    measured_s: float

    @property
    def hidden(self) -> float:
        """Of what could be hidden: the shorter of both."""
        left = self.loading_s + self.computing_s - self.measured_s
        return left / min(self.loading_s, self.computing_s)

    @property
    def over(self) -> float:
        """Measured, as a multiple of the longer of both."""
        return self.measured_s / max(self.loading_s, self.computing_s)


def recipe(quant: str, workers: int, window: str, context: int) -> Recipe:
    """All blocks but the model's ends on the workers, in stages of whole layers."""
    names = [f"w{i}" for i in range(workers)]
    edges = [1 + 2 * ((LAST - 1) // 2 * i // workers) for i in range(workers + 1)]
    pins = [f"--pin={edges[i]}:{edges[i + 1]}={name}" for i, name in enumerate(names)]
    wishes = [*pins, "--window", window, "--spare", "none", "--context", str(context)]
    return Recipe(
        "tinyllama", quant, [Device(name, ENOUGH_BYTES) for name in ("head", *names)], options=wishes
    )


def planned(bundle: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((bundle / "manifest.json").read_bytes())
    return found


def memory_rows() -> list[list[str]]:
    """Each device's peak in f32 at a window of 2, a prompt of three chunks and a few tokens."""
    bundle = built(recipe("f32", 3, "2", 512))
    ids = ",".join(str(3 + i % 1000) for i in range(3 * CHUNK))
    done = run([sys.executable, "-m", "llrun", bundle, "--local", "--prompt-ids", ids, "-n", "4", "--json"])
    plan = planned(bundle)["plan"]
    whole = sum(block["weights_bytes"] for block in plan["blocks"])
    rows = []
    for name, figures in sorted(json.loads(done.stdout)["devices"].items()):
        peak, due = figures["peak_memory_bytes"], plan["devices"][name]["peak_bytes"]
        rows.append(
            [name, f"{peak / 1e6:.0f}", f"{due / 1e6:.0f}", f"{peak / due:.2f}", f"{peak / whole:.1%}"]
        )
    return rows


def streamed(bundle: Path) -> list[Path]:
    """Files of the worker's blocks that stream."""
    record = json.loads((bundle / "devices/w0/slice.json").read_bytes())
    stream = set(record["envelope"]["devices"]["w0"]["streamed"])
    return [bundle / "devices/w0" / block["file"] for block in record["blocks"] if block["id"] in stream]


def times(bundle: Path, before: Sequence[str], runs: int) -> Times:
    sizes = ["-p", str(4 * CHUNK), "-n", str(NEW), "-r", str(runs), "-o", "json"]
    done = run([*before, sys.executable, "-m", "llrun", "bench", bundle, "--local", *sizes])
    prompt, new = (test["tokens_per_s"] for test in json.loads(done.stdout))
    return Times(CHUNK / prompt, 1 / new)


def lines(quant: str, window: int, rate: float, runs: int) -> list[Line]:
    """A chunk and a token with a window at one rate of the disk, and all in memory right before."""
    whole, bundle = built(recipe(quant, 1, "off", 1024)), built(recipe(quant, 1, str(window), 1024))
    files = streamed(bundle)
    alone = times(whole, [], runs)
    with limited(rate, bundle) as before:
        found = times(bundle, before, runs)
    loading_s = sum(file.stat().st_size for file in files) / rate
    return [
        Line("a chunk", window, rate, loading_s, alone.chunk_s, found.chunk_s),
        Line("a token", window, rate, loading_s, alone.token_s, found.token_s),
    ]


def row(line: Line) -> list[str]:
    seconds = [f"{1e3 * value:.0f}" for value in (line.loading_s, line.computing_s, line.measured_s)]
    return [
        f"{line.rate / 1e9:.2f} GB/s",
        str(line.window),
        line.what,
        *seconds,
        f"{line.hidden:.0%}",
        f"{line.over:.2f}",
    ]


@click.command()
@click.option("--quant", default="q4", show_default=True)
@click.option("--rates", default="0.4,1,2", show_default=True, help="GB a second.")
@click.option("--windows", default="3,42", show_default=True, help="Of the worker's 44 blocks.")
@click.option("-r", "--runs", default=3, show_default=True)
@click.option("--memory/--no-memory", default=True, show_default=True)
def main(quant: str, rates: str, windows: str, runs: int, memory: bool) -> None:
    """Measure the memory of devices with a window, and what of the reading is hidden."""
    if reason := why_not():
        raise click.ClickException(reason)
    CACHE.mkdir(parents=True, exist_ok=True)
    if memory:
        heads = ["device", "peak, MB", "plan, MB", "peak / plan", "of the f32 model"]
        click.echo(table(heads, memory_rows(), WORDS) + "\n")
    found = [
        line
        for window in map(int, windows.split(","))
        for rate in map(float, rates.split(","))
        for line in lines(quant, window, rate * 1e9, runs)
    ]
    heads = [
        "disk",
        "window",
        "of",
        "loading, ms",
        "computing, ms",
        "measured, ms",
        "hidden",
        "of the longer",
    ]
    click.echo(table(heads, list(map(row, found)), WORDS))


if __name__ == "__main__":
    main()
