"""The cluster as one JSON object: what each device holds and does, links, one token's way, and what happened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import msgspec

from llrun.faces.server.driver import Condition, Reading
from llrun.faces.server.notes import Told
from llrun.head.moves import Move
from llrun.head.readings import LinkReading
from llrun.head.way import Hop, Hops, Stay, Way, hops_of, way_of
from llrun.programs.groups import block_of
from llrun.programs.rated import owned
from llrun.programs.transmissions import transmissions
from llrun.schema import EnvelopeDevice, GraphRecord, ModelInfo, Slice, StageRecord
from llrun.wire.messages import Figures

KEPT = 4  # stages, of which what they send is kept
Object = dict[str, object]


@dataclass(frozen=True)
class Sent:
    """What stages send of a token: bytes by the ways between devices, and by the hops of its way."""

    ways: Mapping[tuple[str, str], int]
    hops: Hops


def sent_of(graph: GraphRecord, stages: tuple[StageRecord, ...]) -> Sent:
    ways: dict[tuple[str, str], int] = {}
    for each in transmissions(graph, stages):
        way = each.source, each.destination
        ways[way] = ways.get(way, 0) + each.bytes
    return Sent(ways, hops_of(graph, stages))


class Picture:
    """Makes objects of one bundle's cluster. `chat`: whether the model has a chat template.

    What stages send follows from them alone and takes longer than all the rest: it is reckoned once for those that run.
    """

    def __init__(self, record: Slice, chat: bool) -> None:
        self._record = record
        self._chat = chat
        self._sent = lru_cache(maxsize=KEPT)(partial(sent_of, record.graph))

    def snapshot(self, condition: Condition, reading: Reading | None, told: Told) -> Object:
        """What is known now. `reading` None: there is no session, or it did not answer; then stages are the plan's and
        nothing is measured."""
        record, present = self._record, reading.present if reading else None
        stages = present.stages if present else record.stages
        sent = self._sent(stages)
        whole: Object = {
            "condition": condition.value,
            "model": _model(record.model, self._chat),
            "head": record.head,
            "blocks": len(record.graph.blocks),
            "epoch": present.epoch if present else record.program.epoch,
            "stages": _stages(stages),
            "devices": [_device(record, name, stages, reading) for name in _in_order(record, stages)],
            "links": _links(record, sent.ways, reading),
            "token": None,
            "queue": None,
            "tokens": None,
            "moves": [],
            "loading": {"done_bytes": told.done_bytes, "total_bytes": told.total_bytes},
            "events": [{"number": each.number, "at_s": each.at_s, "text": each.text} for each in told.lines],
        }
        if reading and present:
            way = way_of(present, sent.hops, record.envelope.links, reading.readings.links)
            whole |= {
                "token": _token(way),
                "queue": {
                    "running": reading.running,
                    "waiting": reading.waiting,
                    "slots": reading.slots,
                    "moves": reading.moves,
                },
                "tokens": {"count": present.tokens, "at_s": present.at_s},
                "moves": [_move(move) for move in present.moves],
            }
        return whole


def _model(model: ModelInfo, chat: bool) -> Object:
    return {
        "name": model.name,
        "architecture": model.architecture,
        "chat": chat,
        "context": model.shapes.context,
        "precision": msgspec.to_builtins(model.precision),
    }


def _in_order(record: Slice, stages: Sequence[StageRecord]) -> list[str]:
    """The head, then devices by their first stage, then those without one by name."""
    first: dict[str, int] = {}
    for number, stage in enumerate(stages):
        for name in stage.devices:
            first.setdefault(name, number)
    return sorted(record.devices, key=lambda name: (name != record.head, first.get(name, len(stages)), name))


def _stages(stages: Sequence[StageRecord]) -> list[object]:
    return [
        {
            "devices": stage.devices,
            "shares": stage.shares,
            "blocks": stage.blocks,
            "window": stage.window,
            "all_reduce": stage.all_reduce,
        }
        for stage in stages
    ]


def _device(record: Slice, name: str, stages: Sequence[StageRecord], reading: Reading | None) -> Object:
    info, envelope, count = record.devices[name], record.envelope.devices[name], len(record.graph.blocks)
    runs = owned(stages, count).get(name, set())
    held = {block.id: block.weights_bytes for block in envelope.blocks}
    measured = reading.readings.devices.get(name) if reading else None
    figures = reading.figures.get(name) if reading else None
    return {
        "name": name,
        "target": info.target,
        "isa": info.isa,
        "threads": info.threads,
        "alive": _alive(reading, name),
        "standby": envelope.standby,
        "runs": ranges(block_of(piece, count) for piece in runs),
        "spare": ranges(block_of(piece, count) for piece in held.keys() - runs),
        "weights_bytes": sum(size for piece, size in held.items() if piece in runs),
        "streamed": len(set(envelope.streamed) & runs),
        "memory": _memory(
            envelope, info.peak_bytes, figures, measured.free_memory_bytes if measured else None
        ),
        "totals": msgspec.to_builtins(figures) if figures else None,
        "measured": msgspec.to_builtins(measured) if measured else None,
    }


def _alive(reading: Reading | None, name: str) -> bool | None:
    """None where nothing is known."""
    return name in reading.present.alive if reading else None


def _memory(envelope: EnvelopeDevice, planned: int, figures: Figures | None, free: int | None) -> Object:
    """`limit_bytes`: what devices.json gives the device; `planned_bytes`: the most that the plan takes of it."""
    return {
        "limit_bytes": envelope.memory_bytes,
        "planned_bytes": planned,
        "peak_bytes": figures.peak_memory_bytes if figures else None,
        "free_bytes": free,
    }


def _links(record: Slice, sent: Mapping[tuple[str, str], int], reading: Reading | None) -> list[Object]:
    """Those that carry something of a token, or that were measured. `sent`: bytes of a token."""
    planned = {(link.source, link.destination): link for link in record.envelope.links}
    shown: Mapping[tuple[str, str], LinkReading] = (
        {(link.source, link.destination): link for link in reading.readings.links} if reading else {}
    )
    found = []
    for way in sorted({*sent, *shown}):
        plan, now = planned.get(way), shown.get(way)
        found.append(
            {
                "from": way[0],
                "to": way[1],
                "token_bytes": sent.get(way, 0),
                "latency_s": now.latency_s if now else None,
                "bytes_per_s": now.bytes_per_s if now else None,
                "planned_latency_s": plan.latency_s if plan else None,
                "planned_bytes_per_s": plan.bytes_per_s if plan else None,
            }
        )
    return found


def _token(way: Way | None) -> Object | None:
    if way is None:
        return None
    return {
        "position": way.position,
        "sequences": way.sequences,
        "legs": [_stay(leg) if isinstance(leg, Stay) else _hop(leg) for leg in way.legs],
    }


def _stay(stay: Stay) -> Object:
    return {
        "kind": "stay",
        "blocks": stay.blocks,
        "spent": [msgspec.to_builtins(each) for each in stay.spent],
    }


def _hop(hop: Hop) -> Object:
    return {
        "kind": "hop",
        "from": hop.source,
        "to": hop.destination,
        "bytes": hop.size_bytes,
        "seconds": hop.seconds,
        "measured": hop.measured,
    }


def _move(move: Move) -> Object:
    return {
        "token": move.token,
        "epoch": move.epoch,
        "reason": move.reason.value,
        "device": move.device,
        "stages": _stages(move.stages),
        "pause_s": move.pause_s,
        "moved_bytes": move.moved_bytes,
        "computed_again": move.computed_again,
    }


def ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Half-open ranges of consecutive numbers."""
    found: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if found and found[-1][1] == number:
            found[-1] = found[-1][0], number + 1
        else:
            found.append((number, number + 1))
    return found
