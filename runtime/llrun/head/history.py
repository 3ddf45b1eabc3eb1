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
    """

    ids: list[int] = field(default_factory=list)
    queued: int = 0
    fed: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def extend(self, ids: Iterable[int]) -> None:
        """These follow; nothing is computed for them until they are taken."""
        self.ids.extend(ids)

    def take(self) -> list[int]:
        """The ids that are not queued yet, which are now."""
        ids = self.ids[self.queued :]
        self.queued = len(self.ids)
        return ids

    def withdraw(self) -> None:
        """What the devices have not been given waits again to be taken."""
        self.queued = self.fed
