"""Small random models of every family as bundles, for one device and for groups: the models of the tests."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from llcompile import cost, frontend, graph, pipeline
from llcompile.cluster import load_cluster
from llcompile.ir.graph import Graph
from llcompile.ir.model import Model
from llcompile.ir.plan import Plan, Stage
from llcompile.partition.transmissions import transmissions
from llrun.schema import AllReduceKind
from tests import models

FAMILIES = tuple(models.FAMILIES)
CONTEXT = 256
RATES = (2.0, 1.0, 1.6, 0.7, 1.3, 0.8, 2.2, 1.1)  # of the devices, beside each other
SLOW = 0.1  # a head's that the group is better without
MANY_HEADS, MANY_KV_HEADS = 12, 4
Ids = Sequence[int]


@dataclass(frozen=True)
class Source:
    """A family's model: its directory, what the frontend made of it, its blocks, and a prompt with what transformers
    decodes behind it."""

    family: str
    directory: Path
    model: Model
    graph: Graph
    ids: Ids
    tokens: Ids


def heads_of(family: str) -> int:
    return int(models.FAMILIES[family]().config.num_attention_heads)


@contextmanager
def source(family: str, many_heads: bool, prompt: int, new: int) -> Iterator[Source]:
    """`family` as the tests have it, or with as many heads as a group of eight needs."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        heads = (MANY_HEADS, MANY_KV_HEADS) if many_heads else None
        models.build(family, heads=heads).save_pretrained(directory)
        ids, tokens = models.clear_cut(directory, prompt, new)
        model = frontend.load_model(str(directory))
        yield Source(family, directory, model, graph.build_graph(model), ids, tokens)


def devices_json(path: Path, rates: Sequence[float]) -> Path:
    """A cluster of loopback devices with one thread each; the first is the head."""
    devices = [
        {
            "name": f"d{number}",
            "target": "x86-64-v3",
            "address": f"127.0.0.1:{5700 + number}",
            "memory_bytes": 400_000_000,
            "threads": 1,
            "profile": {
                "compute_flops": rate * 1e10,
                "memory_bytes_per_s": rate * 1e9,
                "disk_bytes_per_s": 1e8,
            },
        }
        for number, rate in enumerate(rates)
    ]
    links = {"default": {"bytes_per_s": 1e8, "latency_s": 1e-5}}
    path.write_text(json.dumps({"schema": 1, "head": "d0", "devices": devices, "links": links}))
    return path


def planned(
    source: Source, folder: Path, size: int, outside: bool, kind: AllReduceKind | None, **wishes: object
) -> pipeline.Planned:
    """A plan for one device (`size` 1), or with a group of `size` of all layers, which the head is in unless `outside`.

    `kind`: how it sums, if not as planned.
    """
    rates = (SLOW, *RATES)[: size + 1] if outside else RATES[:size]
    target = devices_json(folder / "devices.json", rates)
    parallel = str(size) if size > 1 else "off"
    options = pipeline.BuildOptions(
        str(source.directory),
        target,
        quant="f32",
        context=CONTEXT,
        wire="f32",
        spare="none",
        tensor_parallel=parallel,
    )
    options = replace(options, **wishes)
    found = pipeline.plan_graph(source.model, source.graph, load_cluster(target), options)
    if size == 1 or kind is None:
        return found
    stages = tuple(
        replace(stage, all_reduce=kind, root=size - 1 if kind is AllReduceKind.STAR else 0)
        if stage.is_group
        else stage
        for stage in found.plan.stages
    )
    return replace(found, plan=with_stages(found, stages))


def with_stages(found: pipeline.Planned, stages: tuple[Stage, ...]) -> Plan:
    """The plan with stages that sum otherwise, and what travels then."""
    plan = found.plan
    flows = cost.flows(found.graph, plan.shapes.chunk, plan.precision.wire)
    return replace(
        plan, stages=stages, transmissions=transmissions(stages, flows, found.sharding.costs), moves=()
    )


def write(planned: pipeline.Planned, folder: Path) -> Path:
    """The bundle of a plan."""
    pipeline.write(planned, pipeline.compile_targets(planned, folder), folder / "bundle")
    return folder / "bundle"
