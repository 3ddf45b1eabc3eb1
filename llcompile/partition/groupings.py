"""Which sets of devices are looked at as a group: all of them where they are few, of equal devices only how many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import prod

from llcompile.partition.formulation import interchangeable
from llcompile.partition.groups import Group, ways_to_sum
from llcompile.partition.problem import HEAD, Problem
from llcompile.partition.search import least_seconds
from llcompile.partition.shares import Shares, open_blocks, splits

SETS = 64  # sets of devices up to which all are looked at

Names = tuple[str, ...]


@dataclass(frozen=True)
class Candidate:
    """A group, and the planning problem in which it stands for its devices."""

    problem: Problem
    group: Group

    @cached_property
    def least(self) -> float:
        """No plan that uses the group has a lower objective: every block where it costs least, a hop in and one out."""
        problem, number = self.problem, len(self.problem.devices) - 1
        into = min(problem.latency_cost(problem.link(d, number)) for d in range(number))
        out = min(problem.latency_cost(problem.link(number, d)) for d in range(number))
        total, w = least_seconds(problem) + into + out, problem.weights
        return total + (w.slowest * total / (w.token * w.sequences) if w.by_token else 0.0)


def sets_of(problem: Problem, size: int | None = None) -> tuple[list[Names], bool]:
    """Sets of devices, of `size` if it is given, each with its lead first, and whether these are all that differ.

    Where there are too many, those are looked at that have the fastest devices, or the largest, with the head and
    without it. Devices that blocks are pinned to are in none, but for the head.
    """
    pinned = {pin.device for pin in problem.options.pins} - {problem.devices[HEAD].name}
    workers = [d for d in problem.workers if problem.devices[d].name not in pinned]
    classes = [[HEAD], *_alike(problem, workers)]
    sizes = {size} if size else {*range(2, len(workers) + 2)}
    if prod(len(each) + 1 for each in classes) <= 2 * SETS:
        chosen = [
            [d for each, count in zip(classes, counts, strict=True) for d in each[:count]]
            for counts in product(*(range(len(each) + 1) for each in classes))
        ]
        every = [each for each in chosen if len(each) in sizes]
        if len(every) <= SETS:
            return [_led(problem, each) for each in every], True
    some = [each for count in sorted(sizes) for each in _leading(problem, workers, count)]
    return [*dict.fromkeys(_led(problem, each) for each in some)], False


def _alike(problem: Problem, workers: Sequence[int]) -> list[list[int]]:
    """Workers that may change places without any figure changing, together."""
    classes: list[list[int]] = []
    for d in workers:
        same = next((each for each in classes if all(interchangeable(problem, e, d) for e in each)), None)
        if same is None:
            classes.append([d])
        else:
            same.append(d)
    return classes


def _leading(problem: Problem, workers: Sequence[int], count: int) -> Iterator[list[int]]:
    """The fastest `count` devices and those with most memory, the head one of them, and without it."""
    for rank in (lambda d: sum(problem.block_cost[d]), lambda d: -problem.free[d]):
        ordered = sorted(workers, key=lambda d: (rank(d), d))
        for with_head in (True, False):
            chosen = [*([HEAD] if with_head else []), *ordered][:count]
            if len(chosen) == count:
                yield chosen


def _led(problem: Problem, numbers: Sequence[int]) -> Names:
    """The head, else the device that reaches it soonest, then the others in the cluster's order."""
    flows = problem.hop_flows[-1]

    def reach(d: int) -> float:
        if d == HEAD:
            return 0.0
        link = problem.link(d, HEAD)
        return problem.latency_cost(link) + problem.bytes_cost(flows, link)

    lead = min(numbers, key=lambda d: (reach(d), d))
    return tuple(problem.devices[d].name for d in (lead, *(d for d in sorted(numbers) if d != lead)))


def candidates(problem: Problem, names: Names, given: Sequence[Shares] | None = None) -> Iterator[Candidate]:
    """The groups of the devices `names`, with every way to share and to sum that is worth a look.

    `given`: the shares to look at, where they are known.
    """
    if problem.pieces is None:
        return
    for shares in splits(problem, names) if given is None else given:
        for group in ways_to_sum(problem.cluster, names, shares, open_blocks(problem), problem.pieces):
            yield Candidate(replace(problem, cluster=group.as_one, group=group), group)
