"""Slow a device to a third in the middle of an answer, and see whether work moves away from it. Needs root.

    python benchmarks/balancing/slowdown.py [--tokens 256] [--at 64] [--cores 0.25] [--rounds 3]

The TinyLlama-1.1B shape in q4 on three devices with links of 100 Mbit/s and 1 ms: network namespaces, devices that
are slow under a quota of processor time. `slow`: all are as fast, until the middle one is slow from token 64 on.
`back`: all are slow, until the middle one has its speed back, and has room for most blocks. Tokens a second of the
rest, with the default balancing beside none, and beside the plan that the compiler makes when it is told the true
rates (a second bundle, not balanced). The quota's default makes a device three times as slow: it is charged by the
tick, and what is idle in between pays back.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parents[1]))
from shared import bundles
from shared.asking import Head, Question
from shared.bundles import Device, Recipe
from shared.fleet import Fleet
from shared.machine import own_description
from shared.machines import Link, Machines, why_not
from shared.tables import table

NAMES = ("anna", "bert", "carl")
CHANGED = "bert"
SLOWNESS = 3.0
MEMORY_BYTES = 420_000_000
BYTES_PER_S, LATENCY_S = 1.25e7, 1e-3
SOON = 32
PROMPT = (1, 3681, 338, 263, 1243, 29889)
HEADS = ("direction", "run", "before, t/s", "after, t/s", f"from {SOON} later, t/s", "compute of bert, ms",
         "moves at tokens", "text")  # fmt: skip


def recipe(slow: Sequence[str], spare: str, roomy: bool = False) -> Recipe:
    """Planned for these devices being slow. `roomy`: the one that changes could hold most blocks."""
    devices = []
    for name in NAMES:
        memory = 660_000_000 if roomy and name == CHANGED else MEMORY_BYTES
        device = Device(name, memory, 6e10, 1.2e10)
        devices.append(device.slowed(SLOWNESS) if name in slow else device)
    # Blocks move between devices that run whole ones, and the two bundles' texts are compared.
    alone = ("--spare", spare, "--tensor-parallel", "off", "--wire", "f32")
    return Recipe("tinyllama", "q4", devices, BYTES_PER_S, LATENCY_S, options=alone)


@dataclass(frozen=True)
class Direction:
    """Who is slow up to the token at which something changes, and from there on."""

    name: str
    before: Sequence[str]
    after: Sequence[str]

    def bundles(self, spare: str) -> tuple[Path, Path]:
        """Planned for what is before, and for what is after."""
        roomy = CHANGED in self.before
        before, after = (recipe(slow, spare, roomy) for slow in (self.before, self.after))
        return bundles.built(before), bundles.built(after)


DIRECTIONS = (Direction("slow", (), (CHANGED,)), Direction("back", NAMES, tuple(set(NAMES) - {CHANGED})))


@dataclass(frozen=True)
class Run:
    """Tokens a second up to the token at which the device changes, from there on, and from some tokens later on;
    `moves` as the session tells them, `compute_s` of the device that changes."""

    before: float
    after: float
    later: float
    compute_s: float
    moves: Sequence[dict[str, Any]]
    tokens: Sequence[int]


def run(bundle: Path, rebalance: str, direction: Direction, cores: float, at: int, tokens: int) -> Run:
    """An answer during which who is slow changes at token `at`."""
    with (
        Machines(NAMES, Link(BYTES_PER_S, LATENCY_S / 2)) as machines,
        tempfile.TemporaryDirectory() as folder,
        Fleet(bundle, machines, Path(folder), ["--no-verify"]) as fleet,
    ):
        fleet.start()
        with Head(fleet, "--rebalance", rebalance, log=Path(folder) / "head.log") as head:
            slow_down(machines, direction.before, cores)
            head.ask([Question(PROMPT, tokens, 1.0, 1)])
            head.await_tokens(at)
            slow_down(machines, direction.after, cores)
            found = head.answers(tokens * 2.0)
            slow_down(machines, (), cores)  # so that the end is not slow as well
    if found.errors:
        raise SystemExit(f"{rebalance}: {found.errors[0]}")
    times = found.times(0)
    return Run(
        _rate(times[:at]), _rate(times[at:]), _rate(times[at + SOON :]), found.compute_s[CHANGED], found.moves,
        found.texts[0],
    )  # fmt: skip


def slow_down(machines: Machines, slow: Sequence[str], cores: float) -> None:
    for name in NAMES:
        machines.quota(name, cores if name in slow else None)


def _rate(times: Sequence[float]) -> float:
    return (len(times) - 1) / (times[-1] - times[0])


def median(runs: Sequence[Run], name: str) -> float:
    return statistics.median(getattr(one, name) for one in runs)


def row(direction: str, name: str, runs: Sequence[Run], tokens: int, text: Sequence[int]) -> list[str]:
    moved = "; ".join(
        ", ".join(f"{move['token']} ({move['reason']}, {move['pause_s'] * 1e3:.0f} ms)" for move in one.moves)
        or "-"
        for one in runs
    )
    return [
        direction,
        name,
        *(f"{median(runs, part):.2f}" for part in ("before", "after", "later")),
        f"{median(runs, 'compute_s') / tokens * 1e3:.1f}",
        moved,
        "same" if all(list(one.tokens) == list(text) for one in runs) else "**differs**",
    ]


@click.command()
@click.option("--tokens", default=256, show_default=True)
@click.option("--at", default=64, show_default=True, help="The token at which the device changes.")
@click.option("--cores", default=0.25, show_default=True, help="Of the device while it is slow.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--spare", type=click.Choice(["auto", "all"]), default="auto", show_default=True)
@click.option("--only", type=click.Choice(["slow", "back", "both"]), default="both", show_default=True)
def main(tokens: int, at: int, cores: float, rounds: int, spare: str, only: str) -> None:
    """Slow a device down and back, with and without balancing."""
    reason = why_not(delayed=True, quotas=True)
    if reason:
        raise SystemExit(reason)
    rows, ratios = [], []
    for direction in DIRECTIONS:
        if only not in (direction.name, "both"):
            continue
        before, after = direction.bundles(spare)
        kinds = {"off": (before, "off"), "auto": (before, "auto"), "planned anew": (after, "off")}
        runs: dict[str, list[Run]] = {name: [] for name in kinds}
        for number in range(rounds):
            for name, (bundle, rebalance) in list(kinds.items())[:: -1 if number % 2 else 1]:
                runs[name].append(run(bundle, rebalance, direction, cores, at, tokens))
                rate = f"{runs[name][-1].after:.2f} t/s"
                click.echo(f"{direction.name} {number + 1}/{rounds}: {name}: {rate}", err=True)
        text = runs["off"][0].tokens
        rows += [row(direction.name, name, found, tokens, text) for name, found in runs.items()]
        off, auto, goal = (median(runs[name], "after") for name in kinds)
        soon = median(runs["auto"], "later") / median(runs["planned anew"], "later")
        ratios.append(
            f"{direction.name}: {auto / off:.2f}x without balancing, {auto / goal:.2f} of planned anew; from {SOON}"
            f" tokens after the change on {soon:.2f} of it"
        )
    click.echo("\n".join([*own_description(), "", table(HEADS, rows, HEADS[:2]), "", *ratios]))


if __name__ == "__main__":
    main()
