"""Plans with groups that nobody chose: a plan of the planner's with other stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llcompile import cost, pipeline
from llcompile.cluster import load_cluster
from llcompile.ir.graph import Graph
from llcompile.ir.model import Model
from llcompile.ir.plan import DeviceLoad, Stage
from llcompile.partition.evaluate import memory
from llcompile.partition.transmissions import transmissions
from llrun.schema import AllReduceKind


def planned_as(
    model: Model,
    graph: Graph,
    options: pipeline.BuildOptions,
    stages: Sequence[Stage],
    divisions: Sequence[Stage] = (),
) -> pipeline.Planned:
    """What the planner says of `model`, but with `stages`, their memory, what travels between them, and `divisions`."""
    found = pipeline.plan_graph(
        model, graph, load_cluster(options.target), replace(options, spare="none", wire="f32")
    )
    pieces, flows = found.sharding.costs, cost.flows(graph, found.plan.shapes.chunk)
    loads = {
        name: DeviceLoad(
            used.weights, used.cache, used.peak, found.cluster.device(name).memory_bytes, compute_s=1e-3
        )
        for name, used in memory(stages, found.costs, flows, found.cluster, pieces).items()
    }
    plan = replace(
        found.plan,
        stages=tuple(stages),
        devices=loads,
        unused={d.name: "" for d in found.cluster.devices if d.name not in loads},
        transmissions=transmissions(stages, flows, pieces),
        spares={},
        divisions=tuple(divisions),
        moves=(),
    )
    return replace(found, plan=plan)


def group(
    devices: Sequence[str], shares: Sequence[float], start: int, stop: int, kind: str, root: int = 0
) -> Stage:
    return Stage(tuple(devices), tuple(shares), start, stop, all_reduce=AllReduceKind(kind), root=root)
