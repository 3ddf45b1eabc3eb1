"""A graph whose blocks a group computes: what the runtime knows of a plan with one, without any template."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from llcompile.bundle import graph_record
from llcompile.ir.graph import Graph
from llcompile.ir.plan import Stage
from llcompile.ir.shard import partial_name, sum_name
from llrun.schema import AllReduceKind, GraphGroup, GraphRecord, GroupBlock, Tensor
from tests.unit.partition.cut import PARTIAL


def with_groups(graph: Graph, stages: Sequence[Stage]) -> GraphRecord:
    """The record of `graph` with the groups of `stages`, divisions among them; a part of a sum has PARTIAL bytes."""
    record, ids = graph_record(graph), dict[str, int]()
    tensors, groups = list(record.tensors), []
    for stage in (stage for stage in stages if stage.is_group):
        blocks = []
        for b in stage.blocks:
            partials = [partial_name(b, rank) for rank in range(len(stage.devices))]
            sums = [sum_name(b, number) for number in range(_sums(stage))]
            for name in (*partials, *sums):
                if name not in ids:
                    ids[name] = len(tensors)
                    shape = (1, -1, PARTIAL // 4)
                    tensors.append(Tensor(id=ids[name], name=name, dtype="float32", shape=shape))
            blocks.append(
                GroupBlock(
                    block=b,
                    shards=tuple(f"shard{rank}" for rank in range(len(stage.devices))),
                    inputs=record.blocks[b].inputs,
                    partials=tuple(ids[name] for name in partials),
                    sums=tuple(ids[name] for name in sums),
                    tail="tail",
                    tail_inputs=(),
                )
            )
        assert stage.all_reduce is not None
        groups.append(
            GraphGroup(
                devices=stage.devices, shares=stage.shares, all_reduce=stage.all_reduce, root=stage.root,
                blocks=tuple(blocks), division=stage.division,
            )
        )  # fmt: skip
    return msgspec.structs.replace(record, tensors=tuple(tensors), groups=tuple(groups))


def _sums(stage: Stage) -> int:
    match stage.all_reduce:
        case AllReduceKind.STAR:
            return 1
        case AllReduceKind.RING:
            return len(stage.devices) - 1
        case _:
            return 0
