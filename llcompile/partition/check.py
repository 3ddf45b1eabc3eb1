"""Checkers: every way in which a plan or a set of programs is not what it promises, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from llcompile.ir.cluster import Cluster
from llcompile.ir.plan import BlockCost, Flow, Plan, ShardCosts, output_start
from llcompile.partition.disk import file_bytes, room_bytes
from llcompile.partition.evaluate import evaluate, held_costs, memory
from llcompile.partition.options import PlanOptions
from llcompile.partition.transmissions import transmissions
from llrun.schema import PlanStatus

NEAR = 1e-6  # relative; figures may differ by rounding


def check_plan(
    plan: Plan,
    costs: Sequence[BlockCost],
    flows: Sequence[Flow],
    cluster: Cluster,
    options: PlanOptions,
    pieces: ShardCosts | None = None,
) -> list[str]:
    """Every violation of what a plan promises; empty when there is none."""
    stages = _check_stages(plan, len(costs), output_start(costs), cluster)
    shape = [*stages, *_check_groups(plan, len(costs), pieces)]
    if shape:
        return shape
    return [
        *_check_wishes(plan, cluster, options),
        *_check_memory(plan, costs, flows, cluster, pieces),
        *_check_disk(plan, costs, cluster, pieces),
        *_check_figures(plan, costs, flows, cluster, options, pieces),
    ]


def _check_stages(plan: Plan, blocks: int, output: int, cluster: Cluster) -> Iterator[str]:
    names = [device.name for device in cluster.devices]
    for number, stage in enumerate(plan.stages):
        if not stage.devices or not set(stage.devices) <= set(names):
            yield f"stage {number} is on {', '.join(stage.devices) or 'nothing'}, not on devices of the cluster"
        if len(set(stage.devices)) < len(stage.devices):
            yield f"stage {number} has a device twice: {', '.join(stage.devices)}"
        if stage.start >= stage.stop:
            yield f"stage {number} is empty: {stage.start} to {stage.stop}"
    edges = [0, *(stage.stop for stage in plan.stages)]
    for number, (stage, start) in enumerate(zip(plan.stages, edges, strict=False)):
        if stage.start != start:
            yield f"stage {number} begins at block {stage.start}, {start} is next"
    if edges[-1] != blocks:
        yield f"the stages end at block {edges[-1]}, the model at {blocks}"
    ends = [stage.devices for stage in (*plan.stages[:1], *plan.stages[-1:])]
    if any(end != (cluster.head,) for end in ends):
        words = " and ".join("+".join(end) for end in ends)
        yield f"the first and the last stage are on {words}, not on the head {cluster.head}"
    elif plan.stages[-1].start > output:
        have = f"the head {cluster.head} has them from {plan.stages[-1].start} on"
        yield f"blocks {output} to {blocks - 1} make the logits, {have}"
    for a, b in pairwise(plan.stages):
        if a.devices == b.devices:
            yield f"{', '.join(a.devices)} has two stages in a row"
    single = [stage.lead for stage in plan.stages if len(stage.devices) == 1]
    rounds = any(stage.window for stage in plan.stages)  # a device has several runs of blocks then
    grouped = [name for stage in plan.stages if stage.is_group for name in stage.devices]
    for name in sorted({*single, *grouped}):
        count, most = single.count(name), 2 if name == cluster.head else 0 if name in grouped else 1
        if count > most and not (rounds and name not in grouped):
            beside = " beside its group" if name in grouped else ""
            yield f"{name} has {count} stage{'s' if count > 1 else ''}{beside}"
        if grouped.count(name) > 1:
            yield f"{name} is in {grouped.count(name)} groups"


def _check_groups(plan: Plan, blocks: int, pieces: ShardCosts | None) -> Iterator[str]:
    for number, stage in enumerate(plan.stages):
        if not stage.is_group:
            if stage.shares != (1.0,) or stage.all_reduce is not None:
                yield f"stage {number} is on one device, and is said to be shared"
            continue
        shares = stage.shares
        if len(shares) != len(stage.devices) or min(shares) <= 0 or abs(sum(shares) - 1) > NEAR:
            yield f"stage {number} has the shares {shares} for {len(stage.devices)} devices"
        elif stage.all_reduce is None or not 0 <= stage.root < len(stage.devices):
            yield f"stage {number} sums as {stage.all_reduce} at rank {stage.root}"
        elif stage.start == 0 or stage.stop == blocks:
            yield f"stage {number}, a group, has the first or the last block"
        else:
            cut = pieces(stage.blocks, shares, stage.parts) if pieces else {}
            yield from (f"block {b} of stage {number} cannot be cut so" for b in stage.blocks if b not in cut)


def _check_wishes(plan: Plan, cluster: Cluster, options: PlanOptions) -> Iterator[str]:
    used = {name for stage in plan.stages for name in stage.devices}
    for device in cluster.devices:
        if (device.name in used) != (device.name in plan.devices):
            yield f"{device.name} is {'not ' if device.name in used else ''}among the devices in use"
        if (device.name in used) == (device.name in plan.unused):
            yield f"{device.name} is {'' if device.name in used else 'not '}among the unused devices"
        if options.use_all and device.name not in used:
            yield f"{device.name} has no block, in spite of --use-all"
    for pin in options.pins:
        wrong = [b for b in range(pin.start, pin.stop) if plan.stage_of(b).devices != (pin.device,)]
        if wrong:
            yield f"block {wrong[0]} is on {', '.join(plan.stage_of(wrong[0]).devices)}, in spite of {pin}"


def _check_memory(
    plan: Plan,
    costs: Sequence[BlockCost],
    flows: Sequence[Flow],
    cluster: Cluster,
    pieces: ShardCosts | None,
) -> Iterator[str]:
    for name, used in memory(plan.stages, costs, flows, cluster, pieces).items():
        limit = cluster.device(name).memory_bytes
        if used.peak > limit:
            yield f"{name} needs {used.peak} bytes, it has {limit}"
        load = plan.devices.get(name)
        told = load and (load.weights_bytes, load.kv_bytes, load.peak_bytes, load.memory_bytes)
        if load and told != (used.weights, used.cache, used.peak, limit):
            yield f"{name} is said to hold {told}, it holds {(used.weights, used.cache, used.peak, limit)}"


def _check_disk(
    plan: Plan, costs: Sequence[BlockCost], cluster: Cluster, pieces: ShardCosts | None
) -> Iterator[str]:
    for device in cluster.devices:
        room = room_bytes(device, len(costs))
        need = sum(file_bytes(cost) for cost in held_costs(plan.stages, device.name, costs, pieces))
        if room is not None and need > max(room, 0):
            yield f"{device.name} needs {need} bytes of its disk for blocks, disk_bytes leaves {max(room, 0)}"


def _check_figures(
    plan: Plan,
    costs: Sequence[BlockCost],
    flows: Sequence[Flow],
    cluster: Cluster,
    options: PlanOptions,
    pieces: ShardCosts | None,
) -> Iterator[str]:
    figures = evaluate(plan.stages, costs, flows, cluster, options, pieces)
    for name in ("ttft_s", "tpot_s", "chunk_s", "slowest_chunk_s", "objective"):
        told, value = getattr(plan, name), getattr(figures, name)
        if abs(told - value) > NEAR * abs(value):
            yield f"{name} is said to be {told}, it is {value}"
    for name in ("precision", "shapes", "prompt_tokens", "new_tokens", "sequences"):
        if getattr(plan, name) != getattr(options, name):
            yield f"{name} is said to be {getattr(plan, name)}, it was {getattr(options, name)}"
    if plan.bound > plan.objective * (1 + NEAR):
        yield f"the bound {plan.bound} is above the objective {plan.objective}"
    if plan.status is PlanStatus.OPTIMAL and plan.gap > options.gap + NEAR:
        yield f"the plan is said to be optimal, with a gap of {plan.gap}"
    if plan.transmissions != transmissions(plan.stages, flows, pieces):
        yield "the transmission map is not the one of these stages"
