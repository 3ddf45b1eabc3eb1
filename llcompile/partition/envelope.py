"""What each device could run, and what it would cost there: the moves that need no compiler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from llcompile.ir.cluster import Cluster
from llcompile.ir.plan import BlockCost, ShardCosts, Stage
from llcompile.partition.evaluate import cut_of, decode_seconds, held_costs, prefill_seconds
from llcompile.partition.streaming import ends, streamed, window_on
from llrun import schema
from llrun.programs.groups import shard_id, tail_id


def envelope(
    held: Mapping[str, Sequence[int]],
    costs: Sequence[BlockCost],
    cluster: Cluster,
    stages: Sequence[Stage] = (),
    pieces: ShardCosts | None = None,
    divisions: Sequence[Stage] = (),
) -> schema.Envelope:
    """The envelope of devices that hold the blocks `held`, by name, and the pieces of the groups of `stages` and of
    `divisions`; seconds are those the plan was made with, weights in memory. What streams of a device's stages does so
    in any others."""
    names, grouped = sorted(held), (*stages, *divisions)
    cut = {name: [*_pieces(grouped, name, len(costs), pieces)] for name in names}
    return schema.Envelope(
        devices={
            name: _device(
                cluster,
                name,
                [*(costs[block] for block in sorted(held[name])), *cut[name]],
                *_streams(stages, name, costs, cut[name]),
            )
            for name in names
        },
        links=tuple(
            schema.LinkRecord(
                source=a,
                destination=b,
                bytes_per_s=float(cluster.link(a, b).bytes_per_s),
                latency_s=float(cluster.link(a, b).latency_s),
            )
            for a in names
            for b in names
            if a != b
        ),
    )


def _pieces(stages: Sequence[Stage], name: str, count: int, pieces: ShardCosts | None) -> Iterator[BlockCost]:
    """Shards and tails on a device, by the ids that they have there."""
    for stage in (stage for stage in stages if stage.is_group and name in stage.devices):
        rank = stage.devices.index(name)
        for block, each in zip(stage.blocks, cut_of(stage, pieces), strict=True):
            yield replace(each.shards[rank], block=shard_id(block, count, stage.division))
            yield replace(each.tails[rank], block=tail_id(block, count, stage.division))


def _streams(
    stages: Sequence[Stage], name: str, costs: Sequence[BlockCost], cut: Sequence[BlockCost]
) -> tuple[tuple[int, ...], int]:
    """Ids of what streams on a device, in order, and how many of them are in memory at once."""
    mine = [stage for stage in stages if stage.devices == (name,)]
    run = [*held_costs(mine, name, costs, None), *cut]
    stream = streamed(window_on(stages, name), run, ends(costs))
    return tuple(run[number].block for number in stream.numbers), stream.ring


def _device(
    cluster: Cluster, name: str, costs: Sequence[BlockCost], stream: tuple[int, ...], ring: int
) -> schema.EnvelopeDevice:
    device = cluster.device(name)
    return schema.EnvelopeDevice(
        memory_bytes=device.memory_bytes,
        runtime_bytes=device.runtime_bytes,
        disk_bytes_per_s=float(device.disk_bytes_per_s),
        standby=device.standby,
        blocks=tuple(
            schema.EnvelopeBlock(
                id=cost.block,
                weights_bytes=cost.weights_bytes,
                cache_bytes=cost.cache_bytes,
                activation_bytes=cost.activation_bytes,
                decode_s=decode_seconds(cost, device),
                chunk_s=prefill_seconds(cost, device),
            )
            for cost in costs
        ),
        streamed=stream,
        ring=ring,
    )
