"""What the head knows of each sequence: its tokens by position, and which of them the devices were given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(eq=False)
class History:
    """A sequence's tokens. The head has them whatever happens to a device: a cache that was lost is made
    again by feeding positions 0 to `fed` once more.

    `ids`: by position; all are final: a prompt's as they come, produced ones once they are chosen. `queued`:
    how many of them are to be computed or have been. `fed`: how many the devices have been given, which
    is what their caches hold when all that is under way is done. fed <= queued <= len(ids).

    `awaited`: the first position whose logits are due and have not come, None when none are. `all_rows`: whether those
    of every position from there on are due, or of the newest alone. `final`: where the step begins that gives these.
    `drafted`: the end of what the devices computed of guesses at what follows `fed`; `ahead`: how many of these were
    right, which count only when what follows them is fed.
    `until`: how many tokens it will have at most when the request that runs is done.
    """

    ids: list[int] = field(default_factory=list)
    queued: int = 0
    fed: int = 0
    awaited: int | None = None
    all_rows: bool = False
    final: int | None = None
    until: int = 0
    drafted: int = 0
    ahead: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def to_come(self) -> int:
        """Tokens that are still to be produced, at most."""
        return max(self.until - len(self.ids), 0)

    def extend(self, ids: Iterable[int]) -> None:
        """These follow; nothing is computed for them until they are taken."""
        self.ids.extend(ids)

    def take(self, all_rows: bool = False) -> list[int]:
        """The ids that are not queued yet, which are now: their logits are awaited, all or the newest token's."""
        self.forget_drafts()
        start, ids = self.queued, self.ids[self.queued :]
        self.queued = len(self.ids)
        if ids:
            self.awaited, self.all_rows = (start if all_rows else self.queued - 1), all_rows
        return ids

    def answered(self, position: int, rows: int) -> bool:
        """Logits have come: `rows` rows of the step that began at `position`. Whether they are awaited, and not of a
        step that nobody asks for any more."""
        if self.awaited is None:
            return False
        if self.all_rows:
            stop = position + rows
            self.awaited = stop if stop < self.queued else None
            return True
        if position != self.final or self.awaited >= self.fed:
            return False
        self.awaited = None
        return True

    def keep(self, guesses: int) -> None:
        """So many of the newest step's guesses were right, and are in `ids` by now."""
        self.ahead = guesses if self.fed + guesses <= self.drafted else 0

    def forget_drafts(self) -> None:
        """Nothing that was computed of guesses is there any more."""
        self.drafted = self.ahead = 0

    def withdraw(self) -> None:
        """What the devices have not been given waits again to be taken."""
        self.forget_drafts()
        self.queued = self.fed
        if self.awaited is not None and self.awaited >= self.fed:
            self.awaited = None
