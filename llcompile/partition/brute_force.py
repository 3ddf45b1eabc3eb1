"""The planner's oracle: every subset of workers, every order, every cut. For small cases only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise, permutations

from llcompile.ir.cluster import Cluster, Device
from llcompile.ir.plan import BlockCost, Flow, Stage
from llcompile.partition.disk import file_bytes, room_bytes
from llcompile.partition.evaluate import evaluate, memory
from llcompile.partition.options import PlanOptions


def brute_force(
    costs: Sequence[BlockCost], flows: Sequence[Flow], cluster: Cluster, options: PlanOptions
) -> tuple[float, tuple[Stage, ...]] | None:
    """The least objective and the stages that have it; None when no plan is feasible.

    Looks at about (blocks)^workers x workers! plans.
    """
    best: tuple[float, tuple[Stage, ...]] | None = None
    for stages in candidates(len(costs), cluster, options):
        used = memory(stages, costs, flows, cluster)
        if any(used[name].peak > cluster.device(name).memory_bytes for name in used):
            continue
        if any(too_large_for_disk(stages, costs, device) for device in cluster.devices):
            continue
        objective = evaluate(stages, costs, flows, cluster, options).objective
        if best is None or objective < best[0]:
            best = objective, stages
    return best


def too_large_for_disk(stages: Sequence[Stage], costs: Sequence[BlockCost], device: Device) -> bool:
    room = room_bytes(device, len(costs))
    mine = [costs[b] for stage in stages if stage.lead == device.name for b in stage.blocks]
    return room is not None and bool(mine) and sum(map(file_bytes, mine)) > room


def candidates(blocks: int, cluster: Cluster, options: PlanOptions) -> Iterator[tuple[Stage, ...]]:
    """Every plan's stages that obeys --use-all and --pin, memory aside."""
    workers = [device.name for device in cluster.devices if device.name != cluster.head]
    counts = [len(workers)] if options.use_all else range(len(workers) + 1)
    for count in counts:
        for order in permutations(workers, count):
            names = (cluster.head, *order, cluster.head) if order else (cluster.head,)
            for cuts in combinations(range(1, blocks), len(names) - 1):
                edges = pairwise((0, *cuts, blocks))
                stages = tuple(Stage.on(name, *edge) for name, edge in zip(names, edges, strict=True))
                if _obeys(stages, options):
                    yield stages


def _obeys(stages: Sequence[Stage], options: PlanOptions) -> bool:
    owners = [stage.lead for stage in stages for _ in range(stage.start, stage.stop)]
    return all(set(owners[pin.start : pin.stop]) == {pin.device} for pin in options.pins)
