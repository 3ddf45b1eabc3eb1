"""Weights that stream from disk: the memory of devices, and how much of the reading hides behind the computing.

    python benchmarks/window.py [--quant q4] [--rates 0.4,1,2] [-r 3] [--memory/--no-memory]

Needs root and control groups of version 1: the processes' reads and memory are limited. The TinyLlama-1.1B shape with
random weights. First its peak memory in f32 on four devices with a window of 2, for 32,000 and for 128,256 tokens,
against the plan and the unsplit model; each device has a hard limit of what the plan says. Then (not with --rates ""),
on a head and a worker of one thread each, a token and a chunk of 128 tokens of prompt with all blocks in memory, and
with windows, at each rate of the disk: seconds, and what of the loading was hidden.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from shared import bounded
from shared.bundles import CACHE, Device, Recipe, built
from shared.disks import limited, why_not
from shared.fleet import Fleet
from shared.processes import run
from shared.tables import table

CHUNK, NEW = 128, 16
LAST = 45  # the block that is the output head
ENOUGH_BYTES = 6_000_000_000
VOCABULARIES = {"tinyllama": 32_000, "tinyllama-128k": 128_256}
SHARE = 0.1  # of the unsplit model, that a device may take at most
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


def recipe(quant: str, workers: int, window: str, context: int, shape: str = "tinyllama") -> Recipe:
    """All blocks but the model's ends on the workers, in stages of whole layers."""
    names = [f"w{i}" for i in range(workers)]
    edges = [1 + 2 * ((LAST - 1) // 2 * i // workers) for i in range(workers + 1)]
    pins = [f"--pin={edges[i]}:{edges[i + 1]}={name}" for i, name in enumerate(names)]
    wishes = [*pins, "--window", window, "--spare", "none", "--context", str(context)]
    return Recipe(shape, quant, [Device(name, ENOUGH_BYTES) for name in ("head", *names)], options=wishes)


def planned(bundle: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((bundle / "manifest.json").read_bytes())
    return found


@dataclass(frozen=True)
class Held:
    """Bytes of a device: the most that it took, what its control group counted at most, and what the plan says."""

    name: str
    peak: int
    counted: int
    due: int


def held(shape: str) -> tuple[list[Held], int]:
    """What each device takes in f32 at a window of 2, for a prompt of three chunks and a few tokens, under a limit of
    what the plan says; and the bytes of the unsplit model."""
    bundle = built(recipe("f32", 3, "2", 512, shape))
    plan = planned(bundle)["plan"]
    due = {name: load["peak_bytes"] for name, load in sorted(plan["devices"].items())}
    ids = ",".join(str(3 + i % 1000) for i in range(3 * CHUNK))
    asked = ["--prompt-ids", ids, "-n", "4", "--json"]
    with (
        tempfile.TemporaryDirectory() as folder,
        bounded.Bounded(due) as places,
        Fleet(bundle, places, Path(folder)) as fleet,
    ):
        fleet.start()
        words = [sys.executable, "-m", "llrun", str(bundle / "devices/head"), *fleet.peers, *asked]
        found = json.loads(run(places.command("head", words)).stdout)["devices"]
        rows = [
            Held(name, found[name]["peak_memory_bytes"], places.most_bytes(name), due[name]) for name in due
        ]
    return rows, sum(block["weights_bytes"] for block in plan["blocks"])


def memory_tables() -> str:
    """The devices' memory with both vocabularies, and the largest beside the largest."""
    rows, fattest = list[list[str]](), list[int]()
    for shape, vocabulary in VOCABULARIES.items():
        found, whole = held(shape)
        fattest.append(max(each.peak for each in found))
        for each in found:
            sizes = (each.peak, each.counted, each.due, round(SHARE * whole))
            rows.append(
                [
                    f"{each.name}, {vocabulary:,} tokens",
                    *(f"{size / 1e6:.0f}" for size in sizes),
                    f"{each.peak / each.due:.2f}",
                    f"{each.peak / whole:.1%}",
                ]
            )
    heads = ["device", "peak, MB", "counted, MB", "plan and limit, MB", "10 % of the f32 model, MB"]
    text = table([*heads, "peak / plan", "of the f32 model"], rows, WORDS)
    return f"{text}\n\nlargest beside largest: {fattest[1] / fattest[0]:.2f}"


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
    if reason := why_not() or bounded.why_not():
        raise click.ClickException(reason)
    CACHE.mkdir(parents=True, exist_ok=True)
    if memory:
        click.echo(memory_tables() + "\n")
    found = [
        line
        for window in map(int, windows.split(","))
        for rate in map(float, filter(None, rates.split(",")))
        for line in lines(quant, window, rate * 1e9, runs)
    ]
    if not found:
        return
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
