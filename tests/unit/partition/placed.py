"""A planning problem as a device sees it: the graph and the envelope of its slice."""

from __future__ import annotations

from collections.abc import Sequence

from llcompile.ir.cluster import Cluster
from llcompile.ir.plan import BlockCost, Flow
from llcompile.partition.evaluate import decode_seconds, prefill_seconds
from llrun import schema
from tests.unit.partition.cases import Case


def graph_of(blocks: int, flows: Sequence[Flow]) -> schema.GraphRecord:
    """Blocks that pass on tensors of `decode_bytes` a row."""
    names = ["ids", "positions", "logits", *(flow.tensor for flow in flows)]
    sizes = [8, 8, 8, *(flow.decode_bytes for flow in flows)]
    tensors = [
        schema.Tensor(id=i, name=name, dtype="uint8", shape=(1, -1, size))
        for i, (name, size) in enumerate(zip(names, sizes, strict=True))
    ]
    made = [
        schema.GraphBlock(id=b, template="t", inputs=_used(flows, b), outputs=_made(flows, b))
        for b in range(blocks)
    ]
    return schema.GraphRecord(
        tensors=tuple(tensors), blocks=tuple(made), positions=None, input_ids=0, position_ids=1, logits=2
    )


def _used(flows: Sequence[Flow], block: int) -> tuple[int, ...]:
    return tuple(3 + i for i, flow in enumerate(flows) if block in flow.consumers)


def _made(flows: Sequence[Flow], block: int) -> tuple[int, ...]:
    return tuple(3 + i for i, flow in enumerate(flows) if block == flow.producer)


def envelope_of(case: Case, held: dict[str, set[int]] | None = None) -> schema.Envelope:
    """All that each device could run: `held`, or everything."""
    devices = {d.name: _device(case.costs, d, held[d.name] if held else None) for d in case.cluster.devices}
    return schema.Envelope(devices=devices, links=_links(case.cluster))


def _device(costs: Sequence[BlockCost], device, held: set[int] | None) -> schema.EnvelopeDevice:  # type: ignore[no-untyped-def]
    return schema.EnvelopeDevice(
        memory_bytes=device.memory_bytes,
        runtime_bytes=device.runtime_bytes,
        disk_bytes_per_s=device.disk_bytes_per_s,
        standby=False,
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
            if held is None or cost.block in held
        ),
    )


def _links(cluster: Cluster) -> tuple[schema.LinkRecord, ...]:
    names = sorted(device.name for device in cluster.devices)
    links = {(a, b): cluster.link(a, b) for a in names for b in names if a != b}
    return tuple(
        schema.LinkRecord(source=a, destination=b, bytes_per_s=k.bytes_per_s, latency_s=k.latency_s)
        for (a, b), k in links.items()
    )
