"""One loss at a time: a device killed at a token, what became of the answers, and how long the next token took."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.asking import Answers, Head, Question, Silent
from shared.example import VOCABULARY
from shared.fleet import Fleet

PROMPT_TOKENS = (1, 150)
LAST_S = 0.01


@dataclass(frozen=True)
class Case:
    """A loss to be made: of `device`, once `token` tokens of all sequences have come and `delay_s` more are over.
    `seed` gives the questions."""

    seed: int
    device: str
    sequences: int
    new_tokens: int
    token: int
    delay_s: float

    def questions(self, vocabulary: int = VOCABULARY) -> list[Question]:
        """One for each sequence: greedy and drawn by turns, of unequal lengths."""
        chance = random.Random(self.seed)
        return [
            Question(
                [chance.randrange(3, vocabulary) for _ in range(chance.randint(*PROMPT_TOKENS))],
                self.new_tokens,
                1.0 if i % 2 == self.seed % 2 else 0.0,
                chance.randrange(1 << 30),
            )
            for i in range(self.sequences)
        ]


def cases(count: int, seed: int, devices: Sequence[str], new_tokens: int) -> list[Case]:
    """`count` losses of random devices, at random tokens, of one to four sequences."""
    chance = random.Random(seed)
    found = []
    for number in range(count):
        sequences = chance.randint(1, 4)
        found.append(
            Case(
                seed * 100_000 + number,
                devices[number % len(devices)],
                sequences,
                new_tokens,
                chance.randrange(1, sequences * new_tokens - 4 * sequences),
                chance.random() * LAST_S,
            )
        )
    return found


@dataclass(frozen=True)
class Outcome:
    """What became of a case. `next_s`: from the loss until every sequence that had tokens to come has its next one
    after the gap, None where the answers were all there; `computed_again`: tokens."""

    case: Case
    same: bool
    errors: Sequence[str]
    next_s: float | None
    moves: Sequence[dict[str, Any]]

    @property
    def ended(self) -> bool:
        return not self.errors

    @property
    def ended_well(self) -> bool:
        return self.same and self.ended

    @property
    def computed_again(self) -> int:
        return sum(move["computed_again"] for move in self.moves)

    @property
    def text(self) -> str:
        """For a report: how to have it again, and what was wrong."""
        wrong = "; ".join(self.errors) or ("" if self.same else "another text")
        return f"{self.case}: {wrong or 'well'}"


def undisturbed(fleet: Fleet, asked: Sequence[Sequence[Question]], *options: str) -> list[list[list[int]]]:
    """The tokens of every question of each list, nothing being lost."""
    with Head(fleet, *options) as head:
        texts = []
        for questions in asked:
            head.ask(questions)
            found = head.answers()
            if found.errors:
                raise Silent(f"an undisturbed answer failed: {found.errors[0]}")
            texts.append([list(text) for text in found.texts])
    return texts


def lose(
    fleet: Fleet, case: Case, expected: Sequence[Sequence[int]], options: Sequence[str], log: Path,
    harm: Callable[[Fleet, str], None] = Fleet.kill,
) -> Outcome:  # fmt: skip
    """Ask, kill, and wait for the end. All workers run; the one that was killed is not started again."""
    lost_s = time.monotonic()
    try:
        with Head(fleet, *options, log=log) as head:
            head.ask(case.questions())
            head.await_tokens(case.token)
            time.sleep(case.delay_s)
            lost_s = time.monotonic()
            harm(fleet, case.device)
            found = head.answers()
    except Silent as error:
        return Outcome(case, False, [str(error)], None, [])
    same = [list(text) for text in found.texts] == [list(text) for text in expected]
    next_s = None if found.errors else next_after(found, lost_s, case.sequences)
    return Outcome(case, same, found.errors, next_s, found.moves)


def next_after(found: Answers, lost_s: float, sequences: int) -> float | None:
    """Seconds from `lost_s` to the end of the longest wait for a token that was going on then or began later, of the
    sequence that waited longest."""
    waits = []
    for sequence in range(sequences):
        times = found.times(sequence)
        gaps = [(b - max(a, lost_s), b) for a, b in itertools.pairwise(times) if b > lost_s]
        if gaps:
            waits.append(max(gaps)[1] - lost_s)
    return max(waits, default=None)


def restarted(fleet: Fleet, case: Case, folder: Path) -> float:
    """Seconds to the next token when all is killed and started again, and what was said is computed again."""
    head = Head(fleet, log=folder / "restart.log")
    head.await_ready()
    head.ask(case.questions())
    head.await_tokens(case.token)
    said = {i: [one.token for one in head.tokens if one.sequence == i] for i in range(case.sequences)}
    start = time.monotonic()
    head.kill()
    for name in list(fleet.pids):
        fleet.kill(name)
    again = _start_all(fleet, folder)
    left = [
        Question([*one.ids, *said[i]], max(case.new_tokens - len(said[i]), 1))
        for i, one in enumerate(case.questions())
    ]
    again.ask(left)
    found = again.answers()
    again.close()
    return max(found.times(i)[0] for i in range(case.sequences)) - start


def _start_all(fleet: Fleet, folder: Path) -> Head:
    """All processes at once: the head waits for the workers."""
    head = Head(fleet, log=folder / "restart-again.log")
    fleet.start()
    head.await_ready()
    return head
