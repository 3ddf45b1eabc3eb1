"""What a slice's envelope may claim: every figure of it is one that a device or a link can have."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite, prod

from llrun.programs.groups import ids_end
from llrun.schema import CacheArray, EnvelopeDevice, GraphRecord, Slice

MOST_FIGURE = 1 << 50  # of seconds, bytes, bytes a second


def envelope_faults(record: Slice) -> Iterator[str]:
    """Everything in the envelope of `record` that none can be right with, in words."""
    envelope = record.envelope
    for name in sorted(record.devices.keys() ^ envelope.devices.keys()):
        yield f"device {name[:40]!r} is in its envelope or among its devices, not in both"
    for name, device in envelope.devices.items():
        yield from _device(name, device, record.graph)
    pairs = [(link.source, link.destination) for link in envelope.links]
    names = sorted(envelope.devices)
    if sorted(pairs) != [(a, b) for a in names for b in names if a != b]:
        yield "its envelope has not one link for each ordered pair of devices"
    for link in envelope.links:
        if not (_is_figure(link.bytes_per_s) and link.bytes_per_s > 0 and _is_figure(link.latency_s)):
            yield f"the link from {link.source[:40]!r} to {link.destination[:40]!r} has no figures that a link can have"
    if record.device in envelope.devices:
        mine = {block.id for block in record.blocks}
        if mine != {block.id for block in envelope.devices[record.device].blocks}:
            yield f"the envelope's blocks of {record.device} are not those of its slice"


def _device(name: str, device: EnvelopeDevice, graph: GraphRecord) -> Iterator[str]:
    ids = [block.id for block in device.blocks]
    if ids != sorted(set(ids)) or any(id >= ids_end(graph) for id in ids):
        count = len(graph.blocks)
        yield f"device {name[:40]!r} of the envelope: its blocks are not in order, or not of the graph's {count}"
    streamed = list(device.streamed)
    if streamed != sorted(set(streamed) & set(ids)) or not 0 <= device.ring <= len(streamed):
        yield f"device {name[:40]!r} of the envelope: what streams is not in order, not there, or fewer than its ring"
    if streamed and not device.ring:
        yield f"device {name[:40]!r} of the envelope: {len(streamed)} blocks stream, none of them may be in memory"
    figures = [float(device.memory_bytes), float(device.runtime_bytes), device.disk_bytes_per_s]
    for block in device.blocks:
        figures += [float(block.weights_bytes), float(block.cache_bytes), float(block.activation_bytes)]
        figures += [block.decode_s, block.chunk_s]
    if not all(map(_is_figure, figures)) or device.disk_bytes_per_s <= 0:
        yield f"device {name[:40]!r} of the envelope has a figure that no device can have"


def _is_figure(value: float) -> bool:
    return isfinite(value) and 0 <= value <= MOST_FIGURE


def cache_faults(what: str, cache: CacheArray, context: int) -> Iterator[str]:
    """Whether every position of a context has its place in a cache."""
    axes = cache.token_axes
    if not axes or len(set(axes)) != len(axes) or any(axis >= len(cache.shape) for axis in axes):
        yield f"{what} has the token axes {list(axes[:8])} of a shape of {len(cache.shape)} axes"
    elif prod(cache.shape[axis] for axis in axes) < context:
        yield f"{what} has room for {prod(cache.shape[axis] for axis in axes)} tokens of a context of {context}"
