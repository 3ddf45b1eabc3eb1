"""What guessing tokens brings: the example model over three devices with slow links, with and without it.

    sudo python benchmarks/speculation.py [--latency 0.005] [--texts 8] [-n 128] [--rounds 2]

Texts are Python files that the model was not trained on, of which it continues a piece; pieces that it is to copy, as
in an edit; and random tokens, where nothing repeats itself but by chance, continued by the likeliest tokens and by
drawn ones. Each is asked alone, with `--speculate off` and `auto` by turns, in a session of its own; a ratio is of the
same text and round. Tokens have to be the same. Needs root (see shared/machines.py).
"""

from __future__ import annotations

import json
import statistics
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
from shared import bundles, example
from shared.fleet import Fleet
from shared.machine import own_description
from shared.machines import Link, Machines, why_not
from shared.processes import run
from shared.tables import table

HEADS = ("text", "guessed", "right", "off, t/s", "auto, t/s", "ratio", "least", "most")
LINES = 24
Said = Mapping[str, Any]  # what llrun says of a run
Pair = tuple[Said, Said]
DRAWN = ("--temperature", "1", "--seed", "7")


@dataclass(frozen=True)
class Text:
    """What is asked: options of llrun."""

    kind: str
    words: Sequence[str]


def texts(count: int) -> Iterator[Text]:
    """`count` of each kind."""
    sys.path.insert(0, str(bundles.EXAMPLE.parent))
    from heldout import heldout_paths

    root = Path(sysconfig.get_paths()["stdlib"])
    files = ((root / path).read_text(encoding="utf-8").splitlines() for path in heldout_paths())
    for lines in islice((lines for lines in files if len(lines) > 3 * LINES), count):
        piece = "\n".join(lines[LINES : 2 * LINES])
        yield Text("Python", ["--prompt", piece + "\n"])
        body = "\n".join(lines[2 * LINES : 3 * LINES])
        yield Text("Python, copied", ["--prompt", f"{body}\n\n\n{body}\n\n\n{body[: len(body) // 4]}"])
    for number in range(count):
        ids = np.random.default_rng(number).integers(0, example.VOCABULARY, 100)
        asked = ["--prompt-ids", ",".join(map(str, ids.tolist()))]
        yield Text("random tokens, likeliest", asked)
        yield Text("random tokens, drawn", [*asked, *DRAWN])


def asked(fleet: Fleet, head: str, text: Text, tokens: int, how: str) -> Said:
    """What llrun says of a run."""
    words = [sys.executable, "-m", "llrun", str(fleet.bundle / "devices" / head), "--no-verify", *fleet.peers]
    words += [*text.words, "-n", str(tokens), "--json", "--speculate", how, "--rebalance", "off"]
    found: Said = json.loads(run(fleet.places.command(head, words)).stdout)
    return found


@click.command()
@click.option("--latency", default=0.005, show_default=True, help="Seconds from one device to another.")
@click.option("--rate", default=1.25e7, show_default=True, help="Bytes a second of every link.")
@click.option("--texts", "count", default=8, show_default=True, help="Of each kind.")
@click.option("-n", "--new", default=128, show_default=True)
@click.option("--rounds", default=2, show_default=True)
def main(latency: float, rate: float, count: int, new: int, rounds: int) -> None:
    """Print a table."""
    reason = why_not(delayed=True)
    if reason:
        raise SystemExit(reason)
    recipe = example.recipe("q4-3")
    bundle, names = bundles.built(recipe), [device.name for device in recipe.devices]
    found: dict[str, list[Pair]] = {}
    with (
        Machines(names, Link(rate, latency / 2)) as machines,
        tempfile.TemporaryDirectory() as folder,
        Fleet(bundle, machines, Path(folder), ["--no-verify"]) as fleet,
    ):
        fleet.start()
        for number in range(rounds):
            for text in texts(count):
                pair = by_turns(fleet, names[0], text, new, number)
                found.setdefault(text.kind, []).append(pair)
                click.echo(f"round {number + 1}/{rounds}: {text.kind}: {_ratio(*pair):.2f}", err=True)
    rows = [_row(kind, pairs) for kind, pairs in found.items()]
    click.echo("\n".join([*own_description(), "", table(HEADS, rows, HEADS[:1])]))


def by_turns(fleet: Fleet, head: str, text: Text, tokens: int, number: int) -> Pair:
    """The run without guesses, and that with them, which is the first of every other round."""
    order = ("off", "auto") if number % 2 == 0 else ("auto", "off")
    runs = {how: asked(fleet, head, text, tokens, how) for how in order}
    if runs["off"]["tokens"] != runs["auto"]["tokens"]:
        raise SystemExit(f"other tokens with guesses: {text}")
    return runs["off"], runs["auto"]


def _ratio(off: Said, auto: Said) -> float:
    if not off["tpot_s"] or not auto["tpot_s"]:
        return 1.0  # one token, or none
    return float(off["tpot_s"] / auto["tpot_s"])


def _row(kind: str, pairs: Sequence[Pair]) -> list[str]:
    guessed = sum(auto["guessed"]["tokens"] for _, auto in pairs)
    right = sum(auto["guessed"]["right"] for _, auto in pairs)
    rates = [
        statistics.median(1 / each["tpot_s"] for each in side if each["tpot_s"])
        for side in zip(*pairs, strict=True)
    ]
    ratios = sorted(_ratio(*pair) for pair in pairs)
    figures = [statistics.median(ratios), ratios[0], ratios[-1]]
    return [
        kind,
        str(guessed),
        str(right),
        *(f"{rate:.1f}" for rate in rates),
        *(f"{each:.2f}" for each in figures),
    ]


if __name__ == "__main__":
    main()
