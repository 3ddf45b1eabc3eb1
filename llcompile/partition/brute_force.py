"""The planner's oracle: every subset of workers, every order, every cut, and groups. For small cases only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, combinations, pairwise, permutations

from llcompile.ir.cluster import Cluster, Device
from llcompile.ir.plan import BlockCost, Flow, ShardCosts, Stage
from llcompile.partition.disk import file_bytes, room_bytes
from llcompile.partition.evaluate import evaluate, held_costs, memory
from llcompile.partition.options import NO_GROUPS, PlanOptions
from llrun.schema import AllReduceKind

Sharing = tuple[tuple[str, ...], tuple[float, ...]]  # devices by rank, the lead first, and their shares


def brute_force(
    costs: Sequence[BlockCost],
    flows: Sequence[Flow],
    cluster: Cluster,
    options: PlanOptions,
    pieces: ShardCosts | None = None,
    sharings: Iterable[Sharing] = (),
) -> tuple[float, tuple[Stage, ...]] | None:
    """The least objective and the stages that have it; None when no plan is feasible.

    Looks at about (blocks)^workers x workers! plans, and as many for each of `sharings` and way to sum.
    """
    best: tuple[float, tuple[Stage, ...]] | None = None
    single = candidates(len(costs), cluster, options) if options.tensor_parallel in (None, NO_GROUPS) else ()
    for stages in chain(single, grouped_candidates(len(costs), cluster, options, sharings)):
        if not all(_cuts(stage, pieces) for stage in stages if stage.is_group):
            continue
        used = memory(stages, costs, flows, cluster, pieces)
        if any(used[name].peak > cluster.device(name).memory_bytes for name in used):
            continue
        if any(too_large_for_disk(stages, costs, device, pieces) for device in cluster.devices):
            continue
        objective = evaluate(stages, costs, flows, cluster, options, pieces).objective
        if best is None or objective < best[0]:
            best = objective, stages
    return best


def _cuts(stage: Stage, pieces: ShardCosts | None) -> bool:
    cut = pieces(stage.blocks, stage.shares, stage.parts) if pieces else {}
    return all(block in cut for block in stage.blocks)


def too_large_for_disk(
    stages: Sequence[Stage], costs: Sequence[BlockCost], device: Device, pieces: ShardCosts | None = None
) -> bool:
    room = room_bytes(device, len(costs))
    mine = held_costs(stages, device.name, costs, pieces)
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


def grouped_candidates(
    blocks: int, cluster: Cluster, options: PlanOptions, sharings: Iterable[Sharing]
) -> Iterator[tuple[Stage, ...]]:
    """Every plan's stages with one group of a sharing, its members without stages of their own but for the head's.

    None where --use-all wants a block of its own for each device, unless a group was asked for.
    """
    wanted = not options.use_all or options.tensor_parallel is not None
    for names, shares in sharings if wanted else ():
        others = [d.name for d in cluster.devices if d.name != cluster.head and d.name not in names]
        counts = [len(others)] if options.use_all else range(len(others) + 1)
        groups = [
            Stage(names, shares, 0, 0, 0, kind, root)
            for kind in AllReduceKind
            for root in range(len(names) if kind is AllReduceKind.STAR else 1)
        ]
        for order in (
            order for count in counts for order in permutations((*others, ""), count + 1) if "" in order
        ):
            for cuts in combinations(range(1, blocks), len(order) + 1):
                for group in groups:
                    owners = [group if name == "" else Stage.on(name, 0, 0) for name in order]
                    ends = Stage.on(cluster.head, 0, 0)
                    edges = pairwise((0, *cuts, blocks))
                    stages = tuple(
                        replace(stage, start=start, stop=stop)
                        for stage, (start, stop) in zip((ends, *owners, ends), edges, strict=True)
                    )
                    if _obeys(stages, options):
                        yield stages


def _obeys(stages: Sequence[Stage], options: PlanOptions) -> bool:
    owners = [stage.devices for stage in stages for _ in range(stage.start, stage.stop)]
    pinned = all(set(owners[pin.start : pin.stop]) == {(pin.device,)} for pin in options.pins)
    wish = options.tensor_parallel
    if wish in (None, NO_GROUPS):
        return pinned
    kept = {b for pin in options.pins for b in range(pin.start, pin.stop)} | {0, len(owners) - 1}
    return pinned and all(len(owners[b]) == wish for b in range(len(owners)) if b not in kept)
