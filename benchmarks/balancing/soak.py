"""A thousand requests to one session with a loss every twenty: nothing may be left behind in any process.

    python benchmarks/balancing/soak.py [--requests 1000] [--every 20] [--bundle q4-4]

The small example model. In the middle of a request a worker that runs blocks then is killed, those that do by turns,
and started again; the head lives through all of it. Memory, file descriptors and threads of every process at the end,
beside those after the first tenth: the same, but for the connections that the present stages need.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parents[1]))
from shared import bundles
from shared.asking import Head
from shared.example import recipe
from shared.fleet import Fleet, Loopback
from shared.losses import Case
from shared.machine import own_description
from shared.tables import table
from shared.usage import Usage, usage

HEADS = ("process", "Pss then, MB", "at the end", "VmRSS then, MB", "at the end ", "descriptors then", "at the end  ",
         "threads then", "at the end   ")  # fmt: skip
NEW_TOKENS = 24
SAME_BYTES = 3_000_000
KINDS = 10  # different requests, so that each has its text


@dataclass(frozen=True)
class Soaked:
    """`then`, `now`: by process, after the first tenth and at the end. `wrong`: requests with another text, or none;
    `changes`: of stages, by reason."""

    then: Mapping[str, Usage]
    now: Mapping[str, Usage]
    wrong: int
    changes: Mapping[str, int]

    @property
    def same(self) -> bool:
        return all(
            abs(self.now[name].own_bytes - before.own_bytes) <= SAME_BYTES
            and abs(self.now[name].descriptors - before.descriptors) < len(self.then)
            and abs(self.now[name].threads - before.threads) < len(self.then)
            for name, before in self.then.items()
        )


def questions(number: int) -> Case:
    kind = number % KINDS
    return Case(kind, "", 1 + kind % 3, NEW_TOKENS, 0, 0.0)


def soak(fleet: Fleet, requests: int, every: int, log: Path) -> Soaked:
    """All requests in one session. Workers run already. What is held is read half-way between two kills."""
    with Head(fleet, log=log) as head:
        expected = []
        for number in range(KINDS):
            head.ask(questions(number).questions())
            expected.append([list(text) for text in head.answers().texts])
        wrong, changes, then = 0, dict[str, int](), dict[str, Usage]()
        running = runners(bundles.planned(fleet.bundle)["stages"], fleet.names)
        for number in range(requests + every // 2):
            victim = running[number // every % len(running)]
            kills = number % every == every - 1
            head.ask(questions(number).questions())
            if kills:
                head.await_tokens(NEW_TOKENS // 2)
                fleet.kill(victim)
            found = head.answers()
            for move in found.moves:
                changes[move["reason"]] = changes.get(move["reason"], 0) + 1
                running = runners(move["stages"], fleet.names)
            if [list(text) for text in found.texts] != expected[number % KINDS] or found.errors:
                wrong += 1
                click.echo(f"request {number}: {'; '.join(found.errors) or 'another text'}", err=True)
            if kills:
                fleet.start()
                click.echo(
                    f"{number + 1}/{requests}: killed {victim}; {changes}; {_all(fleet, head)}", err=True
                )
            if not then and number >= requests // 10 and number % every == every // 2:
                then = _all(fleet, head)
        return Soaked(then, _all(fleet, head), wrong, changes)


def runners(stages: Sequence[Mapping[str, Any]], workers: Sequence[str]) -> list[str]:
    """The workers that have a stage."""
    return sorted({name for stage in stages for name in stage["devices"]} & {*workers})


def _all(fleet: Fleet, head: Head) -> dict[str, Usage]:
    found = {"head": usage(head.process.pid)}
    return found | {name: usage(pid) for name, pid in fleet.pids.items()}


def row(name: str, then: Usage, now: Usage) -> list[str]:
    return [
        name,
        *(
            f"{one / 1e6:.1f}"
            for one in (then.own_bytes, now.own_bytes, then.resident_bytes, now.resident_bytes)
        ),
        *(str(one) for one in (then.descriptors, now.descriptors, then.threads, now.threads)),
    ]


@click.command()
@click.option("--requests", default=1000, show_default=True)
@click.option("--every", default=20, show_default=True, help="Requests between two kills.")
@click.option("--bundle", "text", default="q4-4", show_default=True)
def main(requests: int, every: int, text: str) -> None:
    """Ask and kill, and count what stays."""
    bundle = bundles.built(recipe(text))
    places = Loopback([bundles.head_of(bundle), *bundles.workers(bundle)])
    with tempfile.TemporaryDirectory() as folder, Fleet(bundle, places, Path(folder)) as fleet:
        fleet.start()
        found = soak(fleet, requests, every, Path(folder) / "head.log")
    rows = [row(name, found.then[name], found.now[name]) for name in sorted(found.then)]
    said = (
        f"{requests} requests, {requests // every} kills: {found.wrong} wrong; changes: {dict(found.changes)}"
    )
    click.echo("\n".join([*own_description(), "", said, "", table(HEADS, rows, HEADS[:1])]))
    sys.exit(1 if found.wrong or not found.same else 0)


if __name__ == "__main__":
    main()
