"""Kill devices in the middle of answers: each ends, with the text that it has undisturbed, and soon goes on.

    python benchmarks/balancing/kills.py [--kills 200] [--seed 1] [--bundles f32-3,q4-3,f32-4,q4-4] [--mirror]

SIGKILL at a random token, of each worker in turn, while one to four sequences are decoded, greedily and drawn;
the small example model. Beside it, the seconds that a full restart takes: kill all, start all again with the
same bundle, compute the history again. Whoever was killed is started again before the next. Cases that failed
are printed whole.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))
from shared import bundles, losses
from shared.example import recipe
from shared.fleet import Fleet, Loopback
from shared.machine import own_description
from shared.tables import table

HEADS = ("bundle", "lost", "kills", "ended", "same text", "next token, s", "worst", "restart, s", "ratio")
NEW_TOKENS = 64


def tell(text: str) -> None:
    click.echo(text, err=True)


def lose_all(
    text: str, count: int, seed: int, restarts: int, options: Sequence[str]
) -> tuple[list[losses.Outcome], list[float]]:
    """Outcomes of `count` losses on a bundle, and the seconds of some full restarts."""
    bundle = bundles.built(recipe(text))
    places = Loopback([bundles.head_of(bundle), *bundles.workers(bundle)])
    with tempfile.TemporaryDirectory() as folder, Fleet(bundle, places, Path(folder)) as fleet:
        fleet.start()
        chosen = losses.cases(count, seed, fleet.names, NEW_TOKENS)
        expected = losses.undisturbed(fleet, [case.questions() for case in chosen])
        outcomes = []
        for number, case in enumerate(chosen, 1):
            found = losses.lose(fleet, case, expected[number - 1], options, Path(folder) / "head.log")
            outcomes.append(found)
            said = (Path(folder) / "head.log").read_text() if not found.ended_well else ""
            wait = "-" if found.next_s is None else f"{found.next_s:.3f} s"
            tell(f"{text}: {number}/{count}: {found.text}; next token after {wait}\n{said}".rstrip())
            fleet.start()
        starts = [losses.restarted(fleet, case, Path(folder)) for case in chosen[:restarts]]
    return outcomes, starts


def row(text: str, lost: str, outcomes: Sequence[losses.Outcome], starts: Sequence[float]) -> list[str]:
    waits = [one.next_s for one in outcomes if one.next_s is not None]
    median, restart = (statistics.median(values) if values else float("nan") for values in (waits, starts))
    return [
        text,
        lost,
        str(len(outcomes)),
        str(sum(not one.errors for one in outcomes)),
        str(sum(one.same for one in outcomes)),
        f"{median:.2f}",
        f"{max(waits, default=float('nan')):.2f}",
        f"{restart:.2f}",
        f"{median / restart:.2f}",
    ]


@click.command()
@click.option("--kills", default=200, show_default=True, help="All in all.")
@click.option("--seed", default=1, show_default=True)
@click.option("--bundles", "texts", default="f32-3,q4-3,f32-4,q4-4", show_default=True)
@click.option("--mirror", is_flag=True, help="Copy caches to the spare's device as they are made.")
@click.option("--restarts", default=5, show_default=True, help="Full restarts to time for each bundle.")
def main(kills: int, seed: int, texts: str, mirror: bool, restarts: int) -> None:
    """Kill workers at random tokens and compare texts and times."""
    names = texts.split(",")
    rows, failed = [], []
    for place, text in enumerate(names):
        count = kills * (place + 1) // len(names) - kills * place // len(names)
        found, starts = lose_all(
            text, count, seed + place, restarts, ["--rebalance", "off", *(["--mirror"] if mirror else [])]
        )
        for device in sorted({one.case.device for one in found}):
            rows.append(row(text, device, [one for one in found if one.case.device == device], starts))
        failed += [f"{text}: {one.text}" for one in found if not one.ended_well]
    click.echo("\n".join([*own_description(), "", table(HEADS, rows, HEADS[:2]), "", *failed]))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
