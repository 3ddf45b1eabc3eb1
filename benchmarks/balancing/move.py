"""Move layers to another device in the middle of an answer, and see what the user notices. Needs root.

    python benchmarks/balancing/move.py [--held 1024] [--layers 4] [--tokens 160] [--rounds 5]

The TinyLlama-1.1B shape in q4 on three equal devices with links of 100 Mbit/s and 1 ms (network namespaces). A
hook asks for the move once that many tokens are in the caches. Beside it, the same answer without a move. A
token is late when its gap is more than 1.5 times the ordinary, the median gap of the answer.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from pathlib import Path
from random import Random

import click

sys.path.insert(0, str(Path(__file__).parents[1]))
import itertools

from shared import bundles
from shared.asking import Answers, Head, Question
from shared.bundles import Device, Recipe
from shared.fleet import Fleet
from shared.machine import own_description
from shared.machines import Link, Machines, why_not
from shared.tables import table

NAMES = ("anna", "bert", "carl")
SOURCE, DESTINATION = "bert", "carl"
MEMORY_BYTES = 420_000_000
BYTES_PER_S, LATENCY_S = 1.25e7, 1e-3
BLOCKS_A_LAYER = 2
BEFORE = 24  # tokens of the answer before the move is asked for
LATE = 1.5
VOCABULARY = 32_000
HOOK = Path(__file__).parents[1] / "shared" / "asked_moves.py"
HEADS = ("run", "ordinary gap, ms", "longest gap, ms", "above, ms", "late", "pause told, ms", "MB moved",
         "tokens until moved", "computed again", "text")  # fmt: skip


def recipe() -> Recipe:
    devices = [Device(name, MEMORY_BYTES, 6e10, 1.2e10) for name in NAMES]
    return Recipe(
        "tinyllama",
        "q4",
        devices,
        BYTES_PER_S,
        LATENCY_S,
        options=("--spare", "all", "--tensor-parallel", "off"),
    )


def run(bundle: Path, rebalance: str, question: Question) -> Answers:
    with (
        Machines(NAMES, Link(BYTES_PER_S, LATENCY_S / 2)) as machines,
        tempfile.TemporaryDirectory() as folder,
        Fleet(bundle, machines, Path(folder), ["--no-verify"]) as fleet,
    ):
        fleet.start()
        log = Path(folder) / "head.log"
        with Head(fleet, "--rebalance", rebalance, log=log) as head:
            head.ask([question])
            found = head.answers(600)
        if found.errors:
            raise SystemExit(f"{rebalance}: {found.errors[0]}\n{log.read_text()}")
        return found


def row(name: str, found: Answers, held: int, prompt: int, same: bool) -> list[str]:
    times = found.times(0)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    ordinary, longest = statistics.median(gaps), max(gaps)
    late = sum(gap > LATE * ordinary for gap in gaps)
    moves = found.moves
    return [
        name,
        f"{ordinary * 1e3:.1f}",
        f"{longest * 1e3:.1f}",
        f"{(longest - ordinary) * 1e3:.1f}",
        str(late),
        ", ".join(f"{move['pause_s'] * 1e3:.1f}" for move in moves) or "-",
        ", ".join(f"{move['moved_bytes'] / 1e6:.1f}" for move in moves) or "-",
        ", ".join(str(prompt + move["token"] - held) for move in moves) or "-",
        ", ".join(str(move["computed_again"]) for move in moves) or "-",
        "same" if same else "**differs**",
    ]


@click.command()
@click.option(
    "--held", default=1024, show_default=True, help="Tokens in the caches when the move is asked for."
)
@click.option("--layers", default=4, show_default=True)
@click.option("--tokens", default=160, show_default=True, help="Of the answer.")
@click.option("--rounds", default=5, show_default=True)
def main(held: int, layers: int, tokens: int, rounds: int) -> None:
    """Measure the gap that a planned move makes."""
    reason = why_not(delayed=True)
    if reason:
        raise SystemExit(reason)
    bundle = bundles.built(recipe())
    os.environ["LLRUN_MOVE"] = f"{held}:{layers * BLOCKS_A_LAYER}:{SOURCE}:{DESTINATION}"
    prompt = held - BEFORE
    rows, kept = [], True
    for number in range(rounds):
        chance = Random(number)
        question = Question([chance.randrange(3, VOCABULARY) for _ in range(prompt)], tokens, 1.0, number)
        still = run(bundle, "off", question)
        moved = run(bundle, f"{HOOK}:rebalance", question)
        same = moved.texts == still.texts
        kept = kept and same and len(moved.moves) == 1
        rows.append(row(f"{number + 1}: no move", still, held, prompt, True))
        rows.append(row(f"{number + 1}: {layers} layers", moved, held, prompt, same))
        click.echo(" | ".join(rows[-1]), err=True)
    click.echo("\n".join([*own_description(), "", table(HEADS, rows, HEADS[:1])]))
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
