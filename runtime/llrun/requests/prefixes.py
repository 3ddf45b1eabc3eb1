"""What finished requests leave in the devices' caches, for those whose prompts begin in the same way."""

from __future__ import annotations

from collections.abc import Sequence

from llrun.head.session import Session

LEAST_TOKENS = 16  # of a prefix that is worth a sequence


class Prefixes:
    """Keeps sequences that nobody uses any more, the newest longest. `tokens`: that all sequences may hold together,
    those of running requests among them, before what is kept is given up; 0 keeps none. So an idle session takes no
    more memory than a busy one, and a request never waits for room that is taken by what is kept."""

    def __init__(self, session: Session, tokens: int) -> None:
        self._session = session
        self._tokens = tokens

    def keep(self, number: int) -> bool:
        """Keep a sequence of which nothing is under way; False where that is not worth it."""
        history = self._session.history(number)
        if not LEAST_TOKENS <= history.fed <= self._tokens:
            return False
        self._session.park(number)
        return True

    def longest(self, ids: Sequence[int]) -> tuple[int, int] | None:
        """The sequence that has most of a prompt, the newest of equals, and how many of its first tokens. One at least
        is left to compute: its logits are wanted."""
        best: tuple[int, int] | None = None
        for number, parked in self._session.parked.items():
            count = shared(parked.ids, ids[:-1])
            if count >= (best[1] if best else LEAST_TOKENS):
                best = number, count
        return best

    def make_room(self, running: int, sequences: int) -> None:
        """Give up the oldest until what is kept fits beside those that are used: `sequences`, of `running` tokens."""
        parked = self._session.parked
        if not parked:
            return
        held, room = sum(len(each.ids) for each in parked.values()), self._session.sequences - sequences
        for number, each in list(parked.items()):
            if held + running <= self._tokens and len(parked) <= room:
                return
            held -= len(each.ids)
            self._session.drop(number)


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many of the first ids of two sequences are the same."""
    least, most = 0, min(len(one), len(other))
    a, b = tuple(one[:most]), tuple(other[:most])
    while least < most:  # halving, as comparing tuples takes far less than looking at each id
        middle = (least + most + 1) // 2
        if a[least:middle] == b[least:middle]:
            least = middle
        else:
            most = middle - 1
    return least
