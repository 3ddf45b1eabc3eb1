"""What each device could run, and what it would cost there: the moves that need no compiler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llcompile.ir.cluster import Cluster
from llcompile.ir.plan import BlockCost
from llcompile.partition.evaluate import decode_seconds, prefill_seconds
from llrun import schema


def envelope(
    held: Mapping[str, Sequence[int]], costs: Sequence[BlockCost], cluster: Cluster
) -> schema.Envelope:
    """The envelope of devices that hold the blocks `held`, by name; seconds are those the plan was made with."""
    names = sorted(held)
    return schema.Envelope(
        devices={
            name: _device(cluster, name, [costs[block] for block in sorted(held[name])]) for name in names
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


def _device(cluster: Cluster, name: str, costs: Sequence[BlockCost]) -> schema.EnvelopeDevice:
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
    )
