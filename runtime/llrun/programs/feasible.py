"""Why there cannot be certain stages: order, holders, memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import inf

from llrun.programs.rated import Rated, Stages, owned, spans


def stage_faults(rated: Rated, stages: Stages, before: Stages) -> list[str]:
    """Every reason in words; empty when there can be. See Placement.faults."""
    order = [*_order(rated, stages)]
    return order or [*_holders(rated, stages), *_memory(rated, stages, before)]


def _order(rated: Rated, stages: Stages) -> Iterator[str]:
    for stage in stages:
        if len(stage.devices) != 1:
            yield f"blocks {stage.blocks[0]} to {stage.blocks[1] - 1} are on {len(stage.devices)} devices, not on one"
        if stage.blocks[0] >= stage.blocks[1]:
            yield f"a stage is empty: {stage.blocks[0]} to {stage.blocks[1]}"
    edges = [0, *(stage.blocks[1] for stage in stages)]
    for stage, start in zip(stages, edges, strict=False):
        if stage.blocks[0] != start:
            yield f"a stage begins at block {stage.blocks[0]}, {start} is next"
    if edges[-1] != len(rated.graph.blocks):
        yield f"the stages end at block {edges[-1]}, the model at {len(rated.graph.blocks)}"
    leads = [stage.lead for stage in stages if stage.devices]
    if any(lead != rated.head for lead in (*leads[:1], *leads[-1:])):
        yield f"the first and the last stage are on {leads[0]} and {leads[-1]}, not on the head {rated.head}"
    for a, b in pairwise(leads):
        if a == b:
            yield f"{a} has two stages in a row"
    for name in sorted(set(leads)):
        if leads.count(name) > (2 if name == rated.head else 1):
            yield f"{name} has {leads.count(name)} stages"


def _holders(rated: Rated, stages: Stages) -> Iterator[str]:
    for stage in stages:
        name, held = stage.lead, rated.blocks.get(stage.lead, {})
        if name not in rated.envelope.devices:
            yield f"{name} is not a device of this bundle"
            continue
        if not rated.usable(name):
            yield f"{name} is not there"
        if missing := [block for block in range(*stage.blocks) if block not in held]:
            yield f"{name} does not hold block {missing[0]}: it has {spans(held)}"
    for a, b in pairwise(stages):
        if rated.link(a.lead, b.lead).latency_s == inf and {a.lead, b.lead} <= rated.envelope.devices.keys():
            yield f"nothing is known of a link from {a.lead} to {b.lead}"


def _memory(rated: Rated, stages: Stages, before: Stages) -> Iterator[str]:
    new, old = owned(stages), owned(before)
    buffers = rated.buffer_bytes if len(new.keys() | old.keys()) > 1 else 0
    for name, blocks in new.items():
        held, device = rated.blocks.get(name, {}), rated.envelope.devices.get(name)
        there = [held[b] for b in blocks | old.get(name, set()) if b in held]
        if device is None or not there:
            continue
        needs = sum(b.weights_bytes + b.cache_bytes for b in there) + buffers + device.runtime_bytes
        needs += max(b.activation_bytes for b in there)
        if needs > device.memory_bytes:
            both = ", with old and new blocks in memory at once" if before else ""
            yield f"{name} needs {needs} bytes of memory{both}, it has {device.memory_bytes}"
