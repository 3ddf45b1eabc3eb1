"""From one epoch to the next: what comes early for the next is kept till then, what is of an old one is dropped."""

from __future__ import annotations

from collections.abc import Container, Iterable
from itertools import pairwise

from llrun.engine.events import Arrived, Fed, Switch
from llrun.errors import INTERNAL, RunError
from llrun.programs.installed import Installed
from llrun.wire.protocol import ProtocolError

MAX_EARLY = 256  # frames; the head lets no more chunks go than keep every device busy, and a token a sequence


class Turnstile:
    """Keeps a program that waits for the step boundary, and what came for its epoch before it.

    `waiting`: whether there is one; tokens fed meanwhile are the next epoch's. Not safe for threads: an engine's own.
    """

    def __init__(self) -> None:
        self.waiting = False  # looked at for every event: no call
        self._switch: Switch | None = None
        self._early: list[Arrived | Fed] = []

    def announce(
        self, switch: Switch, current: Installed, resident: Container[int], sequences: Iterable[int]
    ) -> None:
        """Take a program that is to follow `current`, on a device that has the blocks `resident` in memory and these
        `sequences` open; those that are opened before the boundary begin at 0.

        Raises RunError that names why it cannot be: R207 for an epoch that is not the next, another device's program
        or a block that is not in memory, R402 for a sequence of which it is not said where it goes on, in each segment
        no further than in those after it.
        """
        following = switch.installed
        if following.device != current.device:
            raise RunError("R207", f"a program of device {following.device} for {current.device}", INTERNAL)
        if self.waiting or following.epoch != current.epoch + 1:
            due = current.epoch + 1 + self.waiting
            raise RunError(
                "R207",
                f"a program of epoch {following.epoch} for {current.device}, the next is {due}",
                INTERNAL,
            )
        missing = [block for block in following.blocks if block not in resident]
        if missing:
            raise RunError(
                "R207",
                f"block {missing[0]} is run by the program of epoch {following.epoch}, but is not in the memory of"
                f" {current.device}",
                INTERNAL,
            )
        for number in sorted(sequences):
            _check_places(number, switch)
        self._switch, self.waiting = switch, True

    def keep(self, event: Arrived | Fed) -> None:
        """Keep what is for the next epoch. Raises ProtocolError when MAX_EARLY are kept already."""
        if len(self._early) >= MAX_EARLY:
            raise ProtocolError(f"{MAX_EARLY} tensors wait for the next program already")
        self._early.append(event)

    def sort(self, event: Arrived, epoch: int) -> bool:
        """Whether a tensor is of `epoch`, which is current. One of the next is kept, one of an old dropped. Raises
        ProtocolError for one that is further ahead."""
        theirs = event.headers[0].epoch
        if theirs > epoch + 1:
            raise ProtocolError(
                f"a tensor of epoch {theirs} from {event.source}, while epoch {epoch} runs here"
            )
        if theirs == epoch + 1:
            self.keep(event)
        return theirs == epoch

    def turn(self) -> tuple[Switch, list[Arrived | Fed]] | None:
        """At a step boundary: the program that waits, and what came for it, in order; both are forgotten."""
        if self._switch is None:
            return None
        switch, early = self._switch, self._early
        self._switch, self.waiting, self._early = None, False, []
        return switch, early


def _check_places(number: int, switch: Switch) -> None:
    following = switch.installed
    count = len(following.segments)
    places = switch.positions.get(number, () if count == 0 else None)
    if places is None:
        raise RunError(
            "R402",
            f"the program of epoch {following.epoch} does not say where open sequence {number} goes on",
            INTERNAL,
        )
    if len(places) != count:
        raise RunError(
            "R402",
            f"sequence {number} is to go on at {len(places)} places, the program of epoch {following.epoch} has"
            f" {count} segments",
            INTERNAL,
        )
    for index, (place, then) in enumerate(pairwise(places)):
        if place > then:
            raise RunError(
                "R402",
                f"sequence {number} is to go on at {place} in segment {index} and at {then} in the next, which needs"
                " what comes before",
                INTERNAL,
            )
