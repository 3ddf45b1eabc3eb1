"""Kill devices in the middle of answers: each ends, with the text that it has undisturbed, and soon goes on.

    python benchmarks/balancing/kills.py [--kills 200] [--seed 1] [--bundles f32-3,q4-3,f32-4,q4-4] [--mirror]

SIGKILL at a random token, of each worker in turn and of the head, while one to four sequences are decoded, greedily
and drawn; the small example model. Beside it, the seconds that a full restart takes: kill all, start all again with
the same bundle, compute the history again. Whoever was killed is started again before the next; a head, which answers
its questions one after the other, with its session file. Cases that failed are printed whole.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))
from shared import bundles, head_kills, losses
from shared.example import recipe
from shared.fleet import Fleet, Loopback
from shared.machine import own_description
from shared.tables import table

HEADS = ("bundle", "lost", "kills", "ended", "same text", "next token, s", "worst", "restart, s", "ratio")
NEW_TOKENS = 64
Outcome = losses.Outcome | head_kills.HeadOutcome


def tell(text: str) -> None:
    click.echo(text, err=True)


def lose_all(
    text: str, count: int, seed: int, restarts: int, options: Sequence[str]
) -> tuple[list[Outcome], list[float]]:
    """Outcomes of `count` losses on a bundle, and the seconds of some full restarts."""
    bundle = bundles.built(recipe(text))
    head = bundles.head_of(bundle)
    places = Loopback([head, *bundles.workers(bundle)])
    with tempfile.TemporaryDirectory() as folder, Fleet(bundle, places, Path(folder)) as fleet:
        fleet.start()
        chosen = losses.cases(count, seed, [*fleet.names, head], NEW_TOKENS)
        of_workers = [case for case in chosen if case.device != head]
        expected = dict(
            zip(of_workers, losses.undisturbed(fleet, [one.questions() for one in of_workers]), strict=True)
        )
        outcomes: list[Outcome] = []
        for number, case in enumerate(chosen, 1):
            log = Path(folder) / "head.log"
            if case.device == head:
                found: Outcome = lose_head(fleet, case, Path(folder) / "session")
            else:
                found = losses.lose(fleet, case, expected[case], options, log)
            outcomes.append(found)
            said = log.read_text() if case in expected and not found.ended_well else ""
            wait = "-" if found.next_s is None else f"{found.next_s:.3f} s"
            tell(f"{text}: {number}/{count}: {found.text}; next token after {wait}\n{said}".rstrip())
            fleet.start()
        starts = [losses.restarted(fleet, case, Path(folder)) for case in of_workers[:restarts]]
    return outcomes, starts


def lose_head(fleet: Fleet, case: losses.Case, file: Path) -> head_kills.HeadOutcome:
    return head_kills.lose_head(fleet, case, head_kills.undisturbed(fleet, case), file)


def row(text: str, lost: str, outcomes: Sequence[Outcome], starts: Sequence[float]) -> list[str]:
    waits = [one.next_s for one in outcomes if one.next_s is not None]
    median, restart = (statistics.median(values) if values else float("nan") for values in (waits, starts))
    return [
        text,
        lost,
        str(len(outcomes)),
        str(sum(one.ended for one in outcomes)),
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
