"""What would make a loss that cannot be survived one that can: bytes of memory, or of disk."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace

from llcompile.ir.plan import Plan
from llcompile.partition.clock import Clock
from llcompile.partition.disk import file_bytes, room_bytes
from llcompile.partition.many import outlook_of
from llcompile.partition.problem import HEAD, Problem
from llcompile.partition.scenarios import Placed, Scenario, blocks_of, placements

SECONDS = 2.0  # that one question may take of a cluster too large to look at every plan


def remedy(scenario: Scenario, placed: Sequence[Placed], plan: Plan, spares: bool) -> str:
    """Why the loss of `scenario` is not survived, and what it would take.

    `placed`: plans that could be taken if the disks held them.
    """
    if not spares and placed:
        return "no other device holds its blocks: build with --spare auto"
    boundless = _boundless(scenario)
    fitting = placements(boundless, plan.stages, Clock(SECONDS))
    return _disk(scenario, fitting, plan) if fitting else _memory(boundless.problem)


def _boundless(scenario: Scenario) -> Scenario:
    """The scenario on disks without a bound."""
    cluster = scenario.problem.cluster
    devices = tuple(replace(device, disk_bytes=None) for device in cluster.devices)
    return replace(scenario, problem=replace(scenario.problem, cluster=replace(cluster, devices=devices)))


def _disk(scenario: Scenario, fitting: Sequence[Placed], plan: Plan) -> str:
    """The placement that is the fewest bytes of disk away from what is held."""
    ways = [dict(_short(scenario, placed, plan)) for placed in fitting]
    least = min(ways, key=lambda short: (sum(short.values()), sorted(short)))
    bytes_ = {device.name: device.disk_bytes or 0 for device in scenario.problem.devices}
    texts = [
        f"disk_bytes of {name} to be {bytes_[name] + more}, {more} more"
        for name, more in sorted(least.items())
    ]
    return f"there is no disk for its blocks: it would take {', and '.join(texts)}"


def _short(scenario: Scenario, placed: Placed, plan: Plan) -> Iterator[tuple[str, int]]:
    """Bytes that each disk lacks for what it holds and `placed` together; those that lack none are left out."""
    costs, held = scenario.problem.costs, plan.held
    for device in scenario.problem.devices:
        room = room_bytes(device, len(costs))
        blocks = {*held.get(device.name, ()), *blocks_of(device.name, placed.stages)}
        short = sum(file_bytes(costs[b]) for b in blocks) - (room or 0)
        if room is not None and short > 0 and blocks:
            yield device.name, short


def _memory(problem: Problem) -> str:
    """The device that needs the fewest bytes more for the model to fit without the lost one."""
    ways = []
    for number, device in enumerate(problem.devices):
        need = _least_memory(problem, number)
        if need is not None:
            ways.append((need - device.memory_bytes, device.name, need))
    if not ways:
        return "there is no memory for its blocks, and no device's alone would do: add a device"
    more, name, need = min(ways)
    return (
        f"there is no memory for its blocks: it would take memory_bytes of {name} to be {need}, {more} more"
    )


def _least_memory(problem: Problem, number: int) -> int | None:
    """The least `memory_bytes` of one device with which the model fits on these devices; None: none will do."""
    needs = sorted({problem.needed(ranges) for ranges in _runs(problem, number)})
    device = problem.devices[number]
    other = device.memory_bytes - problem.free[number]  # the runtime, and buffers
    needs = [need for need in needs if need > problem.free[number]]
    index = bisect_left(needs, True, key=lambda need: _possible(problem, number, need + other))
    return needs[index] + other if index < len(needs) else None


def _runs(problem: Problem, number: int) -> Iterator[list[tuple[int, int]]]:
    """What the device could run: a worker one run, the head its ends."""
    blocks = problem.blocks
    for start in range(1, blocks):
        for stop in range(start, blocks):
            if number == HEAD:
                yield [(0, start), (stop, blocks)]
            elif start < stop:
                yield [(start, stop)]


def _possible(problem: Problem, number: int, memory_bytes: int) -> bool:
    name = problem.devices[number].name
    devices = tuple(
        replace(d, memory_bytes=memory_bytes) if d.name == name else d for d in problem.cluster.devices
    )
    given = replace(problem, cluster=replace(problem.cluster, devices=devices))
    return outlook_of(given, 1.0, Clock(SECONDS)).best is not None
