"""Which steps are under way, and on which devices."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from llrun.wire.messages import StepDone

Step = tuple[int, int]  # sequence, position


@dataclass
class Newest:
    """The newest step of a sequence: of all, and of those that are a prompt's last or a token."""

    step: int = -1
    final: int = -1


@dataclass
class Progress:
    """Counts the devices that have done each chunk, and knows whether anything is under way at all.

    `every`: devices that take part in every chunk; `partial`: those that only hear of a prompt's last one.
    """

    every: frozenset[str] = frozenset()
    partial: frozenset[str] = frozenset()
    _due: dict[Step, int] = field(default_factory=dict)  # chunks under way: devices that have not done them
    _newest: dict[int, Newest] = field(default_factory=dict)
    _done: dict[str, dict[int, int]] = field(
        default_factory=dict
    )  # device -> sequence -> the position it did last
    _rows: dict[Step, int] = field(default_factory=dict)
    _drafted: set[Step] = field(default_factory=set)  # of whose rows the first alone is a token for sure
    _from: dict[int, Mapping[str, int]] = field(default_factory=dict)  # replays: where each device begins

    def plan(self, every: Collection[str], partial: Collection[str]) -> None:
        """Other devices run from now on, and nothing is under way."""
        self.every, self.partial = frozenset(every), frozenset(partial)
        self._done = {device: self._done.get(device, {}) for device in (*self.every, *self.partial)}
        self._due.clear()

    @property
    def devices(self) -> int:
        return len(self.every) + len(self.partial)

    @property
    def under_way(self) -> int:
        """Chunks that the devices have been given and not done."""
        return len(self._due)

    def single(self, number: int, position: int, drafts: bool = False) -> None:
        """A token goes to all devices, with guesses behind it or alone."""
        newest = self._newest.setdefault(number, Newest())
        newest.step = newest.final = position
        if drafts:
            self._drafted.add((number, position))

    def gone(self, number: int, position: int, rows: int, final: bool) -> None:
        """A step goes to the devices that take part in it."""
        newest = self._newest.setdefault(number, Newest())
        newest.step = position
        newest.final = position if final else newest.final
        self._rows[number, position] = rows
        if rows > 1:
            due = sum(self._takes_part(number, device, position) for device in self.every)
            due += len(self.partial) if final else 0
            if due:
                self._due[number, position] = due

    def done(self, device: str, steps: Collection[StepDone]) -> bool:
        """A device has done steps; whether that makes room for chunks."""
        mine = self._done.setdefault(device, {})
        for step in steps:
            mine[step.sequence] = step.position
        return bool(self._due) and any([self._chunk_done((s.sequence, s.position)) for s in steps])

    def _chunk_done(self, step: Step) -> bool:
        due = self._due.get(step)
        if due is None:
            return False
        if due > 1:
            self._due[step] = due - 1
            return False
        del self._due[step]
        return True

    def quiet(self) -> bool:
        """Whether every device has done all it was given."""
        return all(
            self._done.get(device, {}).get(number, -1) >= newest.step
            for number, newest in self._newest.items()
            for device in self.every
            if self._takes_part(number, device, newest.step)
        ) and all(
            self._done.get(device, {}).get(number, -1) >= newest.final
            for number, newest in self._newest.items()
            for device in self.partial
        )

    def are_tokens(self, steps: Collection[StepDone]) -> bool:
        """Whether these are single tokens, not a chunk of a prompt, nor with guesses."""
        made = [(step.sequence, step.position) for step in steps]
        return self._drafted.isdisjoint(made) and all(self._rows.get(step, 1) == 1 for step in made)

    def reached(self, device: str, number: int) -> int:
        """How many tokens of a sequence a device has computed for sure."""
        position = self._done.get(device, {}).get(number, -1)
        return position + self._rows.get((number, position), 1) if position >= 0 else 0

    def rewind(self, number: int, firsts: Mapping[str, int]) -> None:
        """A sequence goes on at `firsts` on each device; what was under way of it is not any more."""
        self._drop(number)
        self._from[number] = dict(firsts)

    def forget(self, number: int) -> None:
        self._drop(number)
        self._from.pop(number, None)

    def _drop(self, number: int) -> None:
        self._newest.pop(number, None)
        self._due = {step: due for step, due in self._due.items() if step[0] != number}
        self._rows = {step: rows for step, rows in self._rows.items() if step[0] != number}
        self._drafted = {step for step in self._drafted if step[0] != number}
        for mine in self._done.values():
            mine.pop(number, None)

    def _takes_part(self, number: int, device: str, position: int) -> bool:
        return self._from.get(number, {}).get(device, 0) <= position
