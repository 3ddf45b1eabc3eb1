"""Hours of the default balancing function, simulated: that it moves when it pays, and stays calm when it doesn't.

    python benchmarks/balancing/policy.py [--hours 1] [--seeds 5]

TinyLlama's shape on four devices, three of which the plan uses, 100 Mbit/s and 1 ms links; tokens without end. See
shared/policy_hours.py for what is simulated. Rows: noise of 20 % either way on every token; speeds that wander within
20 % over half minutes; a device that is three times as slow every other 10 s; one that goes and comes back every 10 s;
one that falls to a third of its speed, and half an hour later is as fast as before, which can only be tried where all
was moved away from it, and is seen where others have no room for all (three devices); one that falls little by little.
Columns: most moves that the function wanted in any hour, minute and ten minutes, of all seeds; changes that losses
forced; how often the best stages were looked for; tokens from each change of speed until the next move.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))
from shared.policy_hours import Hour, Session, flapping, steady
from shared.tables import table

HEADS = (
    "test",
    "moves",
    "in a minute",
    "in ten",
    "forced",
    "looks",
    "tokens until away",
    "until back",
    "s a token",
)
SLOW, BACK = 600.0, 2400.0
SOON = 32  # tokens
THREE = ("head", "laptop", "pi")


@dataclass(frozen=True)
class Scenario:
    """`turns`: when a device becomes as fast as it stays for a while. `most`: moves in an hour that there may be."""

    name: str
    session: Callable[[int], Session]
    turns: tuple[float, ...] = ()
    most: float = 60


def third(name: str, t: float) -> float:
    return 3.0 if name == "laptop" and SLOW <= t < BACK else 1.0


def slowly(name: str, t: float) -> float:
    return 1.0 + 2.0 * min(max((t - SLOW) / 1200, 0.0), 1.0) if name == "laptop" else 1.0


def every_other(name: str, t: float) -> float:
    return 3.0 if name == "laptop" and flapping(t) else 1.0


def comes_and_goes(name: str, t: float) -> bool:
    return name != "laptop" or not flapping(t)


SCENARIOS = (
    Scenario("noise of 20 %", lambda seed: Session(steady, noise=0.2, seed=seed), most=1),
    Scenario("wandering within 20 %", lambda seed: Session(steady, noise=0.05, drift=0.2, seed=seed), most=1),
    Scenario("slow every other 10 s", lambda seed: Session(every_other, noise=0.1, seed=seed)),
    Scenario("gone every other 10 s", lambda seed: Session(steady, comes_and_goes, noise=0.1, seed=seed)),
    Scenario(
        "to a third, and back: all moved", lambda seed: Session(third, noise=0.1, seed=seed), (SLOW, BACK)
    ),
    Scenario(
        "to a third, and back: some stay",
        lambda seed: Session(third, noise=0.1, seed=seed, names=THREE, room=1.25),
        (SLOW, BACK),
    ),
    Scenario("to a third little by little", lambda seed: Session(slowly, noise=0.1, seed=seed)),
)


def row(scenario: Scenario, hours: list[Hour]) -> list[str]:
    figures = (
        max(len(hour.moves) for hour in hours),
        max(hour.most_within(60) for hour in hours),
        max(hour.most_within(600) for hour in hours),
        max(len(hour.changes) - len(hour.moves) for hour in hours),
        max(hour.looks for hour in hours),
    )
    after = [[hour.tokens_until_move(turn) for hour in hours] for turn in scenario.turns]
    late = [f"{min(tokens):.0f}-{max(tokens):.0f}" for tokens in after] or ["", ""]
    seconds = sum(hour.times[-1] for hour in hours) / sum(len(hour.times) for hour in hours)
    return [scenario.name, *map(str, figures), *late, f"{seconds:.4f}"]


def is_calm(scenario: Scenario, hours: list[Hour]) -> bool:
    """Whether the function moved in time, and not too often."""
    soon = all(hour.tokens_until_move(turn) <= SOON for turn in scenario.turns[:1] for hour in hours)
    most = max(1.0, hours[0].times[-1] / 3600) * scenario.most
    return soon and all(len(hour.moves) <= most and hour.most_within(60) <= 2 for hour in hours)


@click.command()
@click.option("--hours", default=1.0, show_default=True)
@click.option("--seeds", default=5, show_default=True)
def main(hours: float, seeds: int) -> None:
    """Simulate every scenario."""
    rows, failed = [], []
    for scenario in SCENARIOS:
        found = [scenario.session(seed).run(None, hours * 3600) for seed in range(seeds)]
        rows.append(row(scenario, found))
        failed += [] if is_calm(scenario, found) else [scenario.name]
        click.echo(f"{scenario.name}: done", err=True)
    click.echo(table(HEADS, rows))
    if failed:
        raise SystemExit(f"not as it should be: {', '.join(failed)}")


if __name__ == "__main__":
    main()
