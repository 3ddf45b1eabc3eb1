"""Why there cannot be certain stages: order, holders, memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from math import inf

from llrun.programs.groups import block_of, finishers, group_blocks, is_group, tail_id
from llrun.programs.rated import Rated, Stages, devices_of, owned, spans
from llrun.programs.ring import weights_bytes


def stage_faults(rated: Rated, stages: Stages, before: Stages) -> list[str]:
    """Every reason in words; empty when there can be. See Placement.faults."""
    shape = [*_order(rated, stages)] or [*_groups(rated, stages)]
    return shape or [*_holders(rated, stages), *_memory(rated, stages, before)]


def _order(rated: Rated, stages: Stages) -> Iterator[str]:
    for stage in stages:
        named = f"blocks {stage.blocks[0]} to {stage.blocks[1] - 1}"
        if not stage.devices:
            yield f"{named} are on 0 devices"
        if len(set(stage.devices)) < len(stage.devices):
            yield f"{named} are on {', '.join(stage.devices)}, each of which can be there once"
        if stage.blocks[0] >= stage.blocks[1]:
            yield f"a stage is empty: {stage.blocks[0]} to {stage.blocks[1]}"
    edges = [0, *(stage.blocks[1] for stage in stages)]
    for stage, start in zip(stages, edges, strict=False):
        if stage.blocks[0] != start:
            yield f"a stage begins at block {stage.blocks[0]}, {start} is next"
    if edges[-1] != len(rated.graph.blocks):
        yield f"the stages end at block {edges[-1]}, the model at {len(rated.graph.blocks)}"
    names = [stage.devices for stage in stages]
    if any(each != (rated.head,) for each in (*names[:1], *names[-1:])):
        first, last = ("+".join(each) for each in (names[0], names[-1]))
        yield f"the first and the last stage are on {first} and {last}, not on the head {rated.head}"
    for a, b in pairwise(names):
        if a == b:
            yield f"{'+'.join(a)} has two stages in a row"
    alone = Counter(stage.lead for stage in stages if len(stage.devices) == 1)
    rounds = any(device.ring for device in rated.envelope.devices.values())  # a device has several runs then
    for name, count in sorted(alone.items()):
        if count > (2 if name == rated.head else 1) and not rounds:
            yield f"{name} has {count} stages"


def _groups(rated: Rated, stages: Stages) -> Iterator[str]:
    for stage in stages:
        if is_group(stage) and group_blocks(rated.graph, stage) is None:
            names = ", ".join(stage.devices)
            yield f"blocks {stage.blocks[0]} to {stage.blocks[1] - 1} are not cut for {names} with these shares"


def _holders(rated: Rated, stages: Stages) -> Iterator[str]:
    for number, stage in enumerate(stages):
        for name in stage.devices:
            yield from _holder(rated, stages, number, name)
    known = rated.envelope.devices.keys()
    ways = {(a.lead, name) for a, b in pairwise(stages) for name in b.devices if name not in a.devices}
    ways |= {(a, b) for stage in stages for a in stage.devices for b in stage.devices if a != b}
    for a, b in sorted(ways):
        if rated.link(a, b).latency_s == inf and {a, b} <= known:
            yield f"nothing is known of a link from {a} to {b}"


def _holder(rated: Rated, stages: Stages, number: int, name: str) -> Iterator[str]:
    """What speaks against a device in a stage."""
    if name not in rated.envelope.devices:
        yield f"{name} is not a device of this bundle"
        return
    if not rated.usable(name):
        yield f"{name} is not there"
    stage, held, count = stages[number], rated.blocks[name], len(rated.graph.blocks)
    pieces = rated.pieces(stage, name)
    missing = [piece for piece in pieces if piece not in held]
    if is_group(stage) and stage.devices.index(name) in finishers(rated.graph, stages, number):
        last = tail_id(stage.blocks[1] - 1, count, stage.division)
        missing += [last] if last not in held and last not in pieces else []
    if missing and is_group(stage):
        yield f"{name} does not hold its pieces of block {block_of(missing[0], count)}"
    elif missing:
        yield f"{name} does not hold block {missing[0]}: it has {spans({b for b in held if b < count})}"


def _memory(rated: Rated, stages: Stages, before: Stages) -> Iterator[str]:
    count = len(rated.graph.blocks)
    new, old = owned(stages, count), owned(before, count)
    buffers = rated.buffer_bytes if len(devices_of(stages) | devices_of(before)) > 1 else 0
    for name, blocks in new.items():
        held, device = rated.blocks.get(name, {}), rated.envelope.devices.get(name)
        there = [held[b] for b in blocks | old.get(name, set()) if b in held]
        if device is None or not there:
            continue
        needs = weights_bytes(device, [b.id for b in there]) + sum(b.cache_bytes for b in there)
        needs += buffers + device.runtime_bytes
        needs += max(b.activation_bytes for b in there) + rated.group_buffer_bytes(stages, name)
        if needs > device.memory_bytes:
            both = ", with old and new blocks in memory at once" if before else ""
            yield f"{name} needs {needs} bytes of memory{both}, it has {device.memory_bytes}"
