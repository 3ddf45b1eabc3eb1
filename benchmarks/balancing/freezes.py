"""Freeze devices, cut links, and let a second head come: what must not be noticed, and what must be told.

    python benchmarks/balancing/freezes.py [--rounds 3] [--bundle q4-3]

The small example model in answers that take some seconds. SIGSTOP for 0.5 s: no device may be given up. SIGSTOP for
5 s, and a device's link cut for 3 s (needs root: network namespaces): the same text, and the device serves again. A
second head while the first one answers: refused by the name of the device that is busy.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))
import itertools

from shared import bundles
from shared.asking import Answers, Head, Question, Silent
from shared.example import NAMES, recipe
from shared.fleet import Fleet, Loopback, Places
from shared.machine import own_description
from shared.machines import Link, Machines, why_not
from shared.tables import table

HEADS = ("what", "device", "rounds", "same text", "longest gap, s", "given up", "taken back", "serves again")
PROMPT = (5, 300, 77, 12)
NEW_TOKENS = 900
SECOND_S = 4.0


@dataclass(frozen=True)
class Seen:
    """`given_up`, `taken_back`: changes of stages because a device was lost, and because it came back.

    `serves`: whether it is part of the next session.
    """

    same: bool
    longest_s: float
    given_up: int
    taken_back: int
    serves: bool


def freeze(seconds: float) -> Callable[[Fleet, Places, str], None]:
    def harm(fleet: Fleet, places: Places, name: str) -> None:
        fleet.freeze(name)
        time.sleep(seconds)
        fleet.thaw(name)

    return harm


def cut(seconds: float) -> Callable[[Fleet, Places, str], None]:
    def harm(fleet: Fleet, places: Places, name: str) -> None:
        assert isinstance(places, Machines)
        places.cut(name)
        time.sleep(seconds)
        places.join(name)

    return harm


def seen(fleet: Fleet, places: Places, name: str, harm: Callable[[Fleet, Places, str], None], log: Path,
         expected: Sequence[int]) -> Seen:  # fmt: skip
    """Answers, one after another until some time after the harm is over."""
    with Head(fleet, log=log) as head:
        found = [_answer(head, lambda: harm(fleet, places, name))]
        for _ in range(2):  # so that it can be taken back
            found.append(_answer(head, None))
    again = False
    with Head(fleet, "--rebalance", "off", log=log) as head:  # all that the bundle names must be there
        again = _answer(head, None).compute_s[name] > 0
    times = [one.times(0) for one in found]
    longest = max(b - a for line in times for a, b in itertools.pairwise(line))
    reasons = [move["reason"] for one in found for move in one.moves]
    same = all(list(one.texts[0]) == list(expected) for one in found)
    return Seen(same, longest, reasons.count("lost"), reasons.count("joined"), again)


def _answer(head: Head, harm: Callable[[], None] | None) -> Answers:
    head.ask([Question(PROMPT, NEW_TOKENS, 1.0, 2)])
    if harm:
        head.await_tokens(20)
        harm()
    return head.answers()


def second_head(fleet: Fleet, folder: Path) -> str:
    """What a head is told that comes while another one is answered; raises Silent when it is served."""
    with Head(fleet, log=folder / "first.log") as head:
        head.ask([Question(PROMPT, NEW_TOKENS, 1.0, 2)])
        head.await_tokens(5)
        second = Head(fleet, "--timeout", str(SECOND_S), log=folder / "second.log")
        try:
            second.await_ready()
        except Silent as error:
            head.answers()
            return str(error)
        finally:
            second.kill()
    raise Silent("the second head was served")


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--bundle", "text", default="q4-3", show_default=True)
def main(rounds: int, text: str) -> None:
    """Freeze, cut, and come twice."""
    bundle = bundles.built(recipe(text))
    rows, failed = [], []
    reason = why_not()
    kinds = [("frozen for 0.5 s", freeze(0.5), False), ("frozen for 5 s", freeze(5.0), False)]
    kinds += [] if reason else [("link cut for 3 s", cut(3.0), True)]
    for what, harm, in_namespaces in kinds:
        for name in bundles.workers(bundle):
            found = []
            with ExitStack() as stack:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                names = NAMES[: len(bundles.workers(bundle)) + 1]
                places: Places = (
                    stack.enter_context(Machines(names, Link())) if in_namespaces else Loopback(names)
                )
                fleet = stack.enter_context(Fleet(bundle, places, folder))
                fleet.start()
                with Head(fleet) as head:
                    expected = _answer(head, None).texts[0]
                for _ in range(rounds):
                    found.append(seen(fleet, places, name, harm, folder / "head.log", expected))
                    click.echo(f"{what}: {name}: {found[-1]}", err=True)
            rows.append([what, name, str(rounds), str(sum(one.same for one in found)),
                         f"{max(one.longest_s for one in found):.2f}", str(sum(one.given_up for one in found)),
                         str(sum(one.taken_back for one in found)), str(sum(one.serves for one in found))])  # fmt: skip
            false_death = what == "frozen for 0.5 s" and any(one.given_up for one in found)
            if false_death or not all(one.same and one.serves for one in found):
                failed.append(f"{what}: {name}")
    lines = [*own_description(), "", table(HEADS, rows, HEADS[:2]), ""]
    if reason:
        lines.append(f"No link was cut: {reason}.")
    places = Loopback(NAMES[: len(bundles.workers(bundle)) + 1])
    with tempfile.TemporaryDirectory() as name, Fleet(bundle, places, Path(name)) as fleet:
        fleet.start()
        lines.append(f"A second head: {second_head(fleet, Path(name))}")
    click.echo("\n".join(lines))
    if failed:
        raise SystemExit(f"not as it should be: {', '.join(failed)}")


if __name__ == "__main__":
    main()
