"""What watching costs while nothing happens: seconds a token with the monitor and the balancer, without, and before.

    python benchmarks/balancing/overhead.py [--rounds 9] [--tokens 192] [--quant q4] [--before CHECKOUT]

The TinyLlama-1.1B shape on three equal devices of this machine. One answer of each program a round, by turns and in the
opposite order every other round; ratios are taken within a round. `--before`: a checkout to compare with as well, which
builds its own bundle with its own compiler. Answers scatter more than a monitor could cost, so what it does is timed by
itself as well: what a step's figures take to be sent, read and kept, for each device.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import msgspec

sys.path.insert(0, str(Path(__file__).parents[1]))
from shared import bundles
from shared.bundles import CACHE, Device, Recipe
from shared.machine import own_description
from shared.rounds import ratios, spread
from shared.tables import table

from llrun.head.monitor import Monitor
from llrun.schema import StageRecord
from llrun.wire.messages import Figures, StepDone, StepsDone

NAMES = ("anna", "bert", "carl")
MEMORY_BYTES = 420_000_000
PROMPT = "1,3681,338,263,1243,29889"
HEADS = ("run", "ms a token", "least", "most", "ratio to off", "least ", "most ")


def recipe(quant: str) -> Recipe:
    return Recipe("tinyllama", quant, [Device(name, MEMORY_BYTES, 6e10, 1.2e10) for name in NAMES])


def environment(checkout: Path) -> Mapping[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(checkout), str(checkout / "runtime")])}


def built_before(checkout: Path, quant: str) -> Path:
    """The same bundle by the compiler of `checkout`."""
    path = CACHE / f"before-{quant}-{checkout.name}"
    if not (path / "manifest.json").is_file():
        command = [*recipe(quant).command("build", CACHE), "-o", str(path)]
        subprocess.run(command, check=True, cwd=checkout, env=environment(checkout), stdout=sys.stderr)
    return path


def token_s(bundle: Path, tokens: int, options: Sequence[str], checkout: Path | None = None) -> float:
    """Seconds a token after the first, of one answer."""
    words = [sys.executable, "-m", "llrun", str(bundle), "--local", "--no-verify", "--json", *options]
    words += ["--prompt-ids", PROMPT, "-n", str(tokens), "--temperature", "1"]
    env = environment(checkout) if checkout else None
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=checkout, env=env)
    return float(json.loads(done.stdout)["tpot_s"])


def monitor_s(devices: int, tokens: int = 20_000) -> float:
    """Seconds of processor time that the figures of one token's steps take: written and read as on the wire, with and
    without them, and kept by the monitor."""
    plan = [StageRecord.on(str(number), number, number + 1) for number in range(devices)]
    monitor = Monitor(plan, dict.fromkeys(map(str, range(devices)), 1e-3), {})
    full = StepsDone((StepDone(1, 7, 1.5e-3, 2e-3, 8192, 1e-4, (1.5e-3,)),), Figures(1.0, 1.0, 1, 1))
    bare = StepsDone((StepDone(1, 7, 0.0, 0.0, 0),), Figures(0.0, 0.0, 0, 0))
    encoder, decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(StepsDone)
    start = time.process_time()
    for _ in range(tokens * devices):
        decoder.decode(encoder.encode(bare))
    middle = time.process_time()
    for _ in range(tokens):
        for number in range(devices):
            monitor.steps(str(number), decoder.decode(encoder.encode(full)).steps)
    return (time.process_time() - middle - (middle - start)) / tokens


@click.command()
@click.option("--rounds", default=9, show_default=True)
@click.option("--tokens", default=192, show_default=True)
@click.option("--quant", default="q4", show_default=True)
@click.option("--before", type=click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True))
def main(rounds: int, tokens: int, quant: str, before: Path | None) -> None:
    """Time answers with and without balancing."""
    bundle = bundles.built(recipe(quant))
    runs = {
        "off": lambda: token_s(bundle, tokens, ["--rebalance", "off"]),
        "auto": lambda: token_s(bundle, tokens, ["--rebalance", "auto"]),
    }
    if before:
        old = built_before(before, quant)
        runs["before"] = lambda: token_s(old, tokens, [], before)
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs)[:: -1 if number % 2 else 1]:
            found[name].append(runs[name]())
            click.echo(f"{number + 1}/{rounds}: {name}: {found[name][-1] * 1e3:.2f} ms", err=True)
    rows = []
    for name, values in found.items():
        one, ratio = spread([value * 1e3 for value in values]), ratios(values, found["off"])
        figures = [f"{value:.2f}" for value in (one.median, one.least, one.largest)]
        rows.append(
            [name, *figures, *(f"{value:.3f}" for value in (ratio.median, ratio.least, ratio.largest))]
        )
    lines = [*own_description(), "", table(HEADS, rows, HEADS[:1])]
    if before:
        ratio = statistics.median(a / b for a, b in zip(found["auto"], found["before"], strict=True))
        lines.append(f"\nauto beside before: {ratio:.3f}")
    seconds, token = monitor_s(len(NAMES)), statistics.median(found["auto"])
    share = f"{seconds / token:.2%} of a token of {token * 1e3:.1f} ms"
    lines.append(f"\nthe monitor's own work: {seconds * 1e6:.1f} us a token on {len(NAMES)} devices, {share}")
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()
