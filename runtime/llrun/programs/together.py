"""A group in the search for the best stages: one more device, which stands for all of the group's.

What a block takes there is what the whole group takes for it; a message into the group goes to each of its devices, one
out of it is the lead's. Workers of the group have no whole blocks beside it, and the head those alone that the group
has no pieces of.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace
from math import inf

import numpy as np

from llrun.programs.groups import same_group, shard_id, tail_id
from llrun.programs.moving import read_seconds
from llrun.programs.question import HEAD, Bools, Floats, Ints, Question
from llrun.programs.rated import TOKEN, Rated, Stages, owned
from llrun.programs.ring import weights_bytes
from llrun.programs.search import search
from llrun.schema import EnvelopeBlock, GraphGroup, StageRecord


def stages_with(
    rated: Rated, group: GraphGroup, alone: Question, before: Stages, to_come: float, lost: Set[str]
) -> tuple[StageRecord, ...] | None:
    """The best stages found in which `group` computes a run of its blocks; None where there are none. `alone`: what is
    asked of single devices. See Placement.best; what is computed again by a change to them is left out here."""
    if not all(map(rated.usable, group.devices)):
        return None
    asked = _with_group(rated, group, alone, before, to_come, lost)
    name = asked.names[-1]
    runs = search(asked)
    if all(each != name for each, _, _ in runs):
        return None
    return tuple(
        _stage(group, start, stop) if each == name else StageRecord.on(each, start, stop)
        for each, start, stop in runs
    )


def _stage(group: GraphGroup, start: int, stop: int) -> StageRecord:
    return StageRecord(
        devices=group.devices,
        shares=group.shares,
        blocks=(start, stop),
        window=0,
        all_reduce=group.all_reduce,
        root=group.root,
        division=group.division,
    )


def _with_group(
    rated: Rated, group: GraphGroup, alone: Question, before: Stages, to_come: float, lost: Set[str]
) -> Question:
    """The question with the group as the last device, and without those of its devices that are workers."""
    kept = [n for n, name in enumerate(alone.names) if n == HEAD or name not in group.devices]
    less, count = alone.among(kept), alone.blocks
    seconds = np.vstack([less.seconds, _seconds(rated, group, count, before, to_come)])
    if alone.names[HEAD] in group.devices:
        seconds[HEAD, np.isfinite(seconds[-1])] = inf
    nothing, none = np.zeros((1, count), np.int64), np.zeros((1, count), bool)
    latency_s, byte_s = _links(rated, group, less)
    return replace(
        less,
        names=(*less.names, "+".join(group.devices)),
        seconds=seconds,
        stored=np.vstack([less.stored, nothing]),
        active=np.vstack([less.active, nothing]),
        there=np.vstack([less.there, none]),
        free=np.append(less.free, 0),
        limit=np.vstack([less.limit, _limit(rated, group, count, before, lost)]),
        latency_s=latency_s,
        byte_s=byte_s,
    )


def _seconds(rated: Rated, group: GraphGroup, count: int, before: Stages, to_come: float) -> Floats:
    """[block]: of a token, and of reading the pieces divided by the tokens to come; inf: not held."""
    seconds = np.full(count, inf)
    there = {b for stage in before if same_group(stage, group) for b in range(*stage.blocks)}
    for block in (each.block for each in group.blocks):
        seconds[block] = rated.together_s(_stage(group, block, block + 1), TOKEN)
        if to_come > 0 and before and block not in there and np.isfinite(seconds[block]):
            seconds[block] += max(_reading_s(rated, group, name, block) for name in group.devices) / to_come
    return seconds


def _reading_s(rated: Rated, group: GraphGroup, name: str, block: int) -> float:
    size = sum(each.weights_bytes for each in _pieces(rated, group, name, block))
    return read_seconds(rated, name, size)


def _pieces(rated: Rated, group: GraphGroup, name: str, block: int) -> list[EnvelopeBlock]:
    count, held = len(rated.graph.blocks), rated.blocks.get(name, {})
    ids = shard_id(block, count, group.division), tail_id(block, count, group.division)
    return [held[id] for id in ids if id in held]


def _links(rated: Rated, group: GraphGroup, less: Question) -> tuple[Floats, Floats]:
    """Latency and seconds a byte, [from, to], with the group behind the others."""
    into = [[rated.link(name, to) for to in group.devices if to != name] for name in less.names]
    out = [None if name in group.devices else rated.link(group.devices[0], name) for name in less.names]
    latency_s = np.pad(less.latency_s, ((0, 1), (0, 1)))
    byte_s = np.pad(less.byte_s, ((0, 1), (0, 1)))
    latency_s[:-1, -1] = [max(link.latency_s for link in links) for links in into]
    byte_s[:-1, -1] = [sum(1 / link.bytes_per_s for link in links) for links in into]
    latency_s[-1, :-1] = [link.latency_s if link else 0.0 for link in out]
    byte_s[-1, :-1] = [1 / link.bytes_per_s if link else 0.0 for link in out]
    return latency_s, byte_s


def _limit(rated: Rated, group: GraphGroup, count: int, before: Stages, lost: Set[str]) -> Ints:
    """[start]: the greatest stop of the group's stage that begins there, by the memory of each of its devices."""
    shape = len(group.devices), count
    old: Mapping[str, set[int]] = owned(before, count) if not lost else {}
    held, there = np.zeros(shape, bool), np.zeros(shape, bool)
    stored, active = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for rank, name in enumerate(group.devices):
        for block in (each.block for each in group.blocks):
            pieces = _pieces(rated, group, name, block)
            held[rank, block] = bool(pieces)
            there[rank, block] = {piece.id for piece in pieces} <= old.get(name, set())
            streamed = rated.envelope.devices[name].streamed
            stored[rank, block] = sum(
                piece.cache_bytes + (0 if piece.id in streamed else piece.weights_bytes) for piece in pieces
            )
            active[rank, block] = max((piece.activation_bytes for piece in pieces), default=0)
    free = [_free(rated, group, name, old.get(name, set()), count) for name in group.devices]
    members = _members(group.devices, held, stored, active, there, np.array(free, np.int64))
    limit: Ints = members.stops.min(axis=0)
    return limit


def _members(
    names: tuple[str, ...], held: Bools, stored: Ints, active: Ints, there: Bools, free: Ints
) -> Question:
    """The devices of a group by what each has room for, whatever the others have."""
    links = np.zeros((len(names), len(names)))
    limit = np.full(held.shape, held.shape[1], np.int64)
    seconds = np.where(held, 0.0, inf)
    return Question(names, seconds, stored, active, there, free, -1, links, links, (), limit)


def _free(rated: Rated, group: GraphGroup, name: str, old: Set[int], count: int) -> int:
    """What a device has for its pieces: less what it runs until the change is done, and of the head what it keeps."""
    device, pieces = rated.envelope.devices[name], {each.block for each in group.blocks}
    mine = {id for block in pieces for id in (piece.id for piece in _pieces(rated, group, name, block))}
    whole = {b for b in rated.blocks[name] if b < count and b not in pieces} if name == rated.head else set()
    kept = [rated.blocks[name][id] for id in (old - mine) | whole if id in rated.blocks[name]]
    ids = {*(block.id for block in kept), *device.streamed}
    taken = weights_bytes(device, ids) + sum(block.cache_bytes for block in kept)
    stage = _stage(group, group.blocks[0].block, group.blocks[-1].block + 1)
    buffers = rated.buffer_bytes + rated.group_buffer_bytes((stage,), name)
    return device.memory_bytes - device.runtime_bytes - taken - buffers
