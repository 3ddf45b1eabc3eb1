"""Decode prompts together, then each alone: `python -m tests.e2e.together BUNDLE COUNT PROMPTS`, PROMPTS as JSON.

Prints both results as JSON. A process of its own, as one loads one runtime library.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from llrun.device.slice import find
from llrun.faces.app import Where, session_on
from llrun.faces.console import Console
from llrun.head.session import Session
from llrun.requests.conversation import generate
from llrun.requests.sampling import Sampling


def together(session: Session, prompts: list[list[int]], count: int) -> list[list[int]]:
    """Greedy tokens of every prompt: the prompts in turn, then one token of each in a pass."""
    numbers = [session.open() for _ in prompts]
    history = {number: list(ids) for number, ids in zip(numbers, prompts, strict=True)}
    for number in numbers:
        session.feed(number, history[number], 0)
    for left in reversed(range(count)):
        for _ in numbers:
            found = session.next_logits()
            history[found.sequence].append(int(np.argmax(found.rows[-1])))
        if left:
            session.feed_many((number, history[number][-1], len(history[number]) - 1) for number in numbers)
    for number in numbers:
        session.close_sequence(number)
    return [history[number][len(ids) :] for number, ids in zip(numbers, prompts, strict=True)]


def main(bundle: Path, count: int, prompts: list[list[int]]) -> None:
    where = Where(local=True, peers={}, verify=True, timeout_s=60)
    with session_on(find(bundle, None), where, Console(quiet=True)) as session:
        joined = together(session, prompts, count)
        alone = [generate(session, ids, count, Sampling(), lambda _: True).tokens for ids in prompts]
    json.dump({"together": joined, "alone": alone}, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
