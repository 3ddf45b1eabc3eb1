"""A model that is nothing but sums: blocks of a group that hand on what came in, so that a token's time is theirs.

The runtime's own engine, links and sessions, numpy in place of compiled functions; head and workers are one group.
`python -m shared.sum_chain CHAIN NAME` serves as one of the workers, `python -m shared.sum_chain CHAIN HEAD TOKENS`
drives them and prints each token's seconds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import msgspec
import numpy as np

from llrun.device.blocks import BlockStore, Progress, Read
from llrun.device.library import Library
from llrun.device.load import Device
from llrun.head.options import Balancing
from llrun.head.session import Session
from llrun.memory import Array
from llrun.programs.groups import shard_id, tail_id
from llrun.programs.installed import install
from llrun.programs.transmissions import transmissions
from llrun.programs.write import write_programs
from llrun.schema import (
    SCHEMA,
    AllReduceKind,
    BlockEntry,
    DeviceInfo,
    Envelope,
    EnvelopeBlock,
    EnvelopeDevice,
    FileEntry,
    GraphBlock,
    GraphGroup,
    GraphRecord,
    GroupBlock,
    Isa,
    LinkRecord,
    ModelInfo,
    Precision,
    Shapes,
    Slice,
    StageRecord,
    Tensor,
)
from llrun.wire.transport import Tcp
from llrun.worker.worker import Worker

_IDS, _POSITIONS, _LOGITS = 0, 1, 2
_CLASSES = 8
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Chain:
    """`sums` sums of `width` float32 values among `devices`, the first of which is the head, at `addresses`."""

    devices: tuple[str, ...]
    addresses: tuple[str, ...]
    kind: str
    root: int
    sums: int
    width: int

    @property
    def blocks(self) -> int:
        return self.sums + 2


def device_of(chain: Chain, name: str) -> Device:
    """The device `name`, ready to work."""
    record = _record(chain, name)
    library = _library(chain)
    held = _Nothing().read([block.id for block in record.blocks], _unheard)
    store = BlockStore(record, _Nothing(), library.wrap, held)
    return Device(record, install(record), store, library)


def serve(name: str, address: str, chain: Chain) -> None:
    """Be a worker at `address` until killed; says `ready` when it listens."""
    listener, device = Tcp().listen(address), device_of(chain, name)
    worker = Worker(device.record, Tcp(), listener, lambda _: None)
    worker.load(lambda: device)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    worker.serve()


def drive(chain: Chain, tokens: int) -> list[float]:
    """Seconds of each of `tokens` tokens, by the head."""
    found, addresses = [], dict(zip(chain.devices[1:], chain.addresses[1:], strict=True))
    head = device_of(chain, chain.devices[0])
    with Session(head, Tcp(), addresses, _TIMEOUT_S, balancing=Balancing("off")) as session:
        number = session.open()
        for _ in range(tokens):
            session.history(number).extend([1])
            began = time.perf_counter()
            session.feed([number])
            while session.pop_logits() is None:
                session.take()
            found.append(time.perf_counter() - began)
    return found


def words(chain: Chain) -> str:
    """The chain as a worker's command line has it."""
    return json.dumps(asdict(chain))


class _Nothing:
    """Where blocks without weights come from."""

    def memory_bytes(self, block: int) -> int:
        return 0

    def read(self, blocks: Sequence[int], progress: Progress) -> dict[int, Read]:
        return {block: Read((), lambda: None) for block in blocks}


def _unheard(done: int, total: int) -> None:
    pass


def _library(chain: Chain) -> Library:
    row = np.linspace(0, 1, chain.width, dtype=np.float32)[None, None]
    functions = {
        "embed": lambda ids: np.repeat(row, ids.shape[1], axis=1),
        "project": lambda x: np.ascontiguousarray(x[..., :_CLASSES]),
        "shard": lambda x: x,
        "tail": lambda *given: _sum(*given),
        f"sum_{len(chain.devices)}": _sum,
        "sum_2": _sum,
    }
    kinds = ("decode", "prefill", "batch")
    return Library({f"{n}_{kind}": f for n, f in functions.items() for kind in kinds}, _same, _same)


def _same(array: Array) -> Array:
    return array


def _sum(first: Array, *others: Array) -> Array:
    for other in others:
        first = np.add(first, other)
    return first


def _graph(chain: Chain, kind: AllReduceKind) -> GraphRecord:
    count, size = len(chain.devices), chain.width
    names = ["input_ids", "position_ids", "logits", *(f"x{block}" for block in range(chain.sums + 1))]
    shapes = [("int64", (1, -1)), ("int64", (1, -1)), ("float32", (1, -1, _CLASSES))]
    blocks = [GraphBlock(id=0, template="embed", inputs=(_IDS,), outputs=(3,))]
    cut = []
    for block in range(1, chain.sums + 1):
        blocks.append(GraphBlock(id=block, template="block", inputs=(2 + block,), outputs=(3 + block,)))
        first = len(names)
        partials = tuple(range(first, first + count))
        made = {AllReduceKind.STAR: 1, AllReduceKind.DIRECT: 0, AllReduceKind.RING: count - 1}[kind]
        sums = tuple(range(first + count, first + count + made))
        names += [f"p{block}_{i}" for i in range(count)] + [f"s{block}_{i}" for i in range(made)]
        cut.append(
            GroupBlock(
                block=block,
                shards=("shard",) * count,
                inputs=(2 + block,),
                partials=partials,
                sums=sums,
                tail="tail",
                tail_inputs=(),
            )
        )
    last = chain.sums + 1
    blocks.append(GraphBlock(id=last, template="project", inputs=(2 + last,), outputs=(_LOGITS,)))
    shapes += [("float32", (1, -1, size))] * (len(names) - len(shapes))
    group = GraphGroup(
        devices=chain.devices,
        shares=(1 / count,) * count,
        all_reduce=kind,
        root=chain.root,
        blocks=tuple(cut),
    )
    return GraphRecord(
        tensors=tuple(
            Tensor(id=id, name=name, dtype=dtype, shape=shape)
            for id, (name, (dtype, shape)) in enumerate(zip(names, shapes, strict=True))
        ),
        blocks=tuple(blocks),
        positions=None,
        input_ids=_IDS,
        position_ids=_POSITIONS,
        logits=_LOGITS,
        groups=(group,),
    )


def _stages(chain: Chain, kind: AllReduceKind) -> tuple[StageRecord, ...]:
    head, last, count = chain.devices[0], chain.sums + 1, len(chain.devices)
    together = StageRecord(
        devices=chain.devices,
        shares=(1 / count,) * count,
        blocks=(1, last),
        window=0,
        all_reduce=kind,
        root=chain.root,
    )
    return StageRecord.on(head, 0, 1), together, StageRecord.on(head, last, last + 1)


def _record(chain: Chain, name: str) -> Slice:
    kind = AllReduceKind(chain.kind)
    graph, stages = _graph(chain, kind), _stages(chain, kind)
    sent = transmissions(graph, stages)
    blocks = {device: _held(chain, device) for device in chain.devices}
    return Slice(
        schema=SCHEMA,
        digest="",
        bundle="5" * 64,
        model=ModelInfo(
            name="sums",
            architecture="Sums",
            precision=Precision.of("f32", "f32"),
            shapes=Shapes(1 << 16, 8),
            vocab_size=_CLASSES,
            bos_token_id=None,
            eos_token_ids=(),
        ),
        device=name,
        head=chain.devices[0],
        devices={name: _info(name, at) for name, at in zip(chain.devices, chain.addresses, strict=True)},
        library="lib/model.so",
        runtime_library="lib/libtvm_runtime.so",
        graph=graph,
        stages=stages,
        transmissions=sent,
        envelope=_envelope(blocks),
        blocks=tuple(blocks[name]),
        program=write_programs(graph, stages, sent, 1)[name],
        max_payload_bytes=8 * chain.width * 4,
        files={
            file: FileEntry(size_bytes=1, sha256="")
            for file in ("lib/model.so", "lib/libtvm_runtime.so", *(b.file for b in blocks[name]))
        },
    )


def _held(chain: Chain, device: str) -> list[BlockEntry]:
    ids = {0: "embed", chain.sums + 1: "project"} if device == chain.devices[0] else {}
    for block in range(1, chain.sums + 1):
        ids |= {shard_id(block, chain.blocks): "shard", tail_id(block, chain.blocks): "tail"}
    return [
        BlockEntry(id=id, template=template, file=f"weights/{id}.safetensors", params=(), caches=())
        for id, template in sorted(ids.items())
    ]


def _info(device: str, address: str) -> DeviceInfo:
    return DeviceInfo(
        name=device,
        target="x86-64-v3",
        address=address,
        threads=1,
        memory_bytes=1 << 30,
        peak_bytes=1 << 20,
        isa=Isa.AVX2,
    )


def _envelope(blocks: dict[str, list[BlockEntry]]) -> Envelope:
    device = EnvelopeDevice(
        memory_bytes=1 << 30, runtime_bytes=0, disk_bytes_per_s=1e9, standby=False, blocks=()
    )
    cost = {"weights_bytes": 0, "cache_bytes": 0, "activation_bytes": 0, "decode_s": 1e-6, "chunk_s": 1e-6}
    held = {
        name: tuple(EnvelopeBlock(id=block.id, **cost) for block in mine) for name, mine in blocks.items()
    }
    names = sorted(blocks)
    ways = [(a, b) for a in names for b in names if a != b]
    links = [LinkRecord(source=a, destination=b, bytes_per_s=1e9, latency_s=1e-4) for a, b in ways]
    devices = {name: msgspec.structs.replace(device, blocks=held[name]) for name in names}
    return Envelope(devices=devices, links=tuple(links))


def main() -> None:
    """Be the device that the command line names."""
    told, name = json.loads(sys.argv[1]), sys.argv[2]
    chain = Chain(**{**told, "devices": tuple(told["devices"]), "addresses": tuple(told["addresses"])})
    rank = chain.devices.index(name)
    pin(rank)
    if rank:
        serve(name, chain.addresses[rank], chain)
    else:
        sys.stdout.write(json.dumps(drive(chain, int(sys.argv[3]))))


def pin(rank: int) -> None:
    """Keep this process on one core, another one for each rank as far as there are so many."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})


if __name__ == "__main__":
    main()
