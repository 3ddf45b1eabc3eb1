"""Checkers: every way in which a plan or a set of programs is not what it promises, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from llcompile.ir.cluster import Cluster
from llcompile.ir.plan import BlockCost, Flow, Plan
from llcompile.partition.disk import file_bytes, room_bytes
from llcompile.partition.evaluate import evaluate, memory
from llcompile.partition.options import PlanOptions
from llcompile.partition.transmissions import transmissions
from llrun.schema import PlanStatus

NEAR = 1e-6  # relative; figures may differ by rounding


def check_plan(
    plan: Plan, costs: Sequence[BlockCost], flows: Sequence[Flow], cluster: Cluster, options: PlanOptions
) -> list[str]:
    """Every violation of what a plan promises; empty when there is none."""
    shape = [*_check_stages(plan, len(costs), cluster)]
    if shape:
        return shape
    return [
        *_check_wishes(plan, cluster, options),
        *_check_memory(plan, costs, flows, cluster),
        *_check_disk(plan, costs, cluster),
        *_check_figures(plan, costs, flows, cluster, options),
    ]


def _check_stages(plan: Plan, blocks: int, cluster: Cluster) -> Iterator[str]:
    names = [device.name for device in cluster.devices]
    for number, stage in enumerate(plan.stages):
        if len(stage.devices) != 1 or not set(stage.devices) <= set(names):
            yield f"stage {number} is on {', '.join(stage.devices) or 'nothing'}, not on one device of the cluster"
        if stage.start >= stage.stop:
            yield f"stage {number} is empty: {stage.start} to {stage.stop}"
    edges = [0, *(stage.stop for stage in plan.stages)]
    for number, (stage, start) in enumerate(zip(plan.stages, edges, strict=False)):
        if stage.start != start:
            yield f"stage {number} begins at block {stage.start}, {start} is next"
    if edges[-1] != blocks:
        yield f"the stages end at block {edges[-1]}, the model at {blocks}"
    ends = [stage.lead for stage in (*plan.stages[:1], *plan.stages[-1:]) if stage.devices]
    if any(end != cluster.head for end in ends):
        yield f"the first and the last stage are on {' and '.join(ends)}, not on the head {cluster.head}"
    owners = [stage.lead for stage in plan.stages if stage.devices]
    for a, b in pairwise(owners):
        if a == b:
            yield f"{a} has two stages in a row"
    for name in sorted(set(owners)):
        if owners.count(name) > (2 if name == cluster.head else 1):
            yield f"{name} has {owners.count(name)} stages"


def _check_wishes(plan: Plan, cluster: Cluster, options: PlanOptions) -> Iterator[str]:
    used = {stage.lead for stage in plan.stages}
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
    plan: Plan, costs: Sequence[BlockCost], flows: Sequence[Flow], cluster: Cluster
) -> Iterator[str]:
    for name, used in memory(plan.stages, costs, flows, cluster).items():
        limit = cluster.device(name).memory_bytes
        if used.peak > limit:
            yield f"{name} needs {used.peak} bytes, it has {limit}"
        load = plan.devices.get(name)
        told = load and (load.weights_bytes, load.kv_bytes, load.peak_bytes, load.memory_bytes)
        if load and told != (used.weights, used.cache, used.peak, limit):
            yield f"{name} is said to hold {told}, it holds {(used.weights, used.cache, used.peak, limit)}"


def _check_disk(plan: Plan, costs: Sequence[BlockCost], cluster: Cluster) -> Iterator[str]:
    for device in cluster.devices:
        room = room_bytes(device, len(costs))
        need = sum(file_bytes(costs[b]) for stage in plan.stages_of(device.name) for b in stage.blocks)
        if room is not None and need > max(room, 0):
            yield f"{device.name} needs {need} bytes of its disk for blocks, disk_bytes leaves {max(room, 0)}"


def _check_figures(
    plan: Plan, costs: Sequence[BlockCost], flows: Sequence[Flow], cluster: Cluster, options: PlanOptions
) -> Iterator[str]:
    figures = evaluate(plan.stages, costs, flows, cluster, options)
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
    if plan.transmissions != transmissions(plan.stages, flows):
        yield "the transmission map is not the one of these stages"
