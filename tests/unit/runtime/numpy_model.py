"""A small model in numpy, cut over any number of devices: the runtime's tests need no compiler.

Seven blocks: an embedding, four that append to a cache and mix in the mean of what it holds, one that
subtracts half the embedding, and an output head; the last two are needed for a prompt's last row alone.
The functions have the calling convention of compiled ones, so engine, links, worker and head run
unchanged. Devices whose names begin with `standby` hold every block, as all do, and run none at first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from llrun.device.blocks import BlockStore, Progress, Read
from llrun.device.library import Library
from llrun.device.load import Device
from llrun.programs.installed import install
from llrun.schema import (
    MAX_BATCH,
    SCHEMA,
    BlockEntry,
    CacheArray,
    DeviceInfo,
    DeviceProgram,
    Envelope,
    EnvelopeBlock,
    EnvelopeDevice,
    FileEntry,
    GraphBlock,
    GraphPositions,
    GraphRecord,
    Isa,
    LinkRecord,
    Load,
    ModelInfo,
    Precision,
    Receive,
    Release,
    Run,
    Send,
    Shapes,
    Slice,
    StageRecord,
    Tensor,
    TransmissionRecord,
    WireFormat,
)

VOCABULARY, WIDTH, CONTEXT, CHUNK, BLOCKS = 97, 16, 256, 8, 7
MIXERS = range(1, BLOCKS - 2)
IDS, POSITIONS, LOGITS, SKIP, TABLE, FIRST = 0, 1, 2, 3, 4, 10  # tensor ids; FIRST + i: output of block i
BUNDLE = "b" * 64


def weights(seed: int = 3) -> list[tuple[np.ndarray, ...]]:
    random = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    mixers = [(draw(WIDTH, WIDTH) / 3,) for _ in MIXERS]
    return [(draw(VOCABULARY, WIDTH),), *mixers, (), (draw(VOCABULARY, WIDTH),)]


def embed(ids: np.ndarray, table: np.ndarray) -> np.ndarray:
    return table[ids]


def positions(ids: np.ndarray) -> np.ndarray:
    return np.cos(ids[..., None] * np.linspace(0.1, 1, WIDTH)).astype(np.float32)


def times(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x w, each row on its own: its bits don't depend on what else there is."""
    return np.stack([row @ w for row in x.reshape(-1, x.shape[-1])]).reshape(*x.shape[:-1], -1)


def mix(
    x: np.ndarray, table: np.ndarray, ids: np.ndarray, w: np.ndarray, slots: np.ndarray, caches: np.ndarray
) -> np.ndarray:
    """Row at position p: x + tanh((mean of the cache's rows 0..p) W) * table. caches (slots, 1, context, width)."""
    start, n = int(ids[0, 0]), x.shape[1]
    assert np.array_equal(ids[0], np.arange(start, start + n))
    assert slots.shape == (1,)
    cache = caches[slots[0], 0]
    cache[start : start + n] = x[0]
    sums = np.cumsum(cache[: start + n].astype(np.float64), axis=0)[start:]
    means = (sums / (ids[0][:, None] + 1)).astype(np.float32)
    return (x + np.tanh(times(means, w))[None] * table).astype(np.float32)


def mix_batch(x, table, ids, w, slots, caches) -> np.ndarray:
    """A row of each of several sequences, each at its own position."""
    count = x.shape[1]
    assert ids.shape == (1, count)
    assert slots.shape == (count,)
    assert len(set(slots.tolist())) == count <= MAX_BATCH
    rows = [
        mix(x[:, i : i + 1], table[:, i : i + 1], ids[:, i : i + 1], w, slots[i : i + 1], caches)
        for i in range(count)
    ]
    return np.concatenate(rows, axis=1)


def trim(x: np.ndarray, skip: np.ndarray) -> np.ndarray:
    return (x - 0.5 * skip).astype(np.float32)


def project(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return times(x, w.T)


def one_row(function):
    """What a decode function promises to be called with."""

    def checked(first, *rest):
        assert first.shape[1] == 1
        return function(first, *rest)

    return checked


def library(**replaced: object) -> Library:
    kinds = {"t0": embed, "t1": mix, "t2": trim, "t3": project, "positions": positions} | replaced
    functions = {f"{name}_{kind}": f for name, f in kinds.items() for kind in ("prefill", "batch")}
    functions |= {f"{name}_decode": one_row(f) for name, f in kinds.items()}
    functions["t1_batch"] = mix_batch
    return Library(functions, lambda array: array, lambda array: array)


def whole(seed: int = 3) -> Callable[[int], np.ndarray]:
    """The whole model in float32: called with the next token, gives logits (vocabulary,)."""
    parts = weights(seed)
    caches = [np.zeros((1, 1, CONTEXT, WIDTH), np.float32) for _ in MIXERS]
    slots, positions_left = np.zeros(1, np.int64), iter(range(CONTEXT))

    def following(token: int) -> np.ndarray:
        where = np.array([[next(positions_left)]])
        x = skip = embed(np.array([[token]]), *parts[0])
        for part, cache in zip(parts[1:-2], caches, strict=True):
            x = mix(x, positions(where), where, *part, slots, cache)
        return project(trim(x, skip), *parts[-1])[0, 0]

    return following


def reference(ids: list[int], seed: int = 3) -> np.ndarray:
    """Logits (n, vocabulary) of the whole model."""
    model = whole(seed)
    return np.stack([model(token) for token in ids])


def greedy(ids: list[int], count: int) -> list[int]:
    """The whole model's greedy continuation."""
    model, tokens = whole(), []
    for token in ids[:-1]:
        model(token)
    following = ids[-1]
    for _ in range(count):
        following = int(np.argmax(model(following)))
        tokens.append(following)
    return tokens


def owners(devices: list[str]) -> list[str]:
    """Device of each block: first and last on the head; of four, the last has the trimming block."""
    middle = {
        1: [0, 0, 0, 0, 0],
        2: [0, 1, 1, 1, 1],
        3: [1, 1, 2, 2, 0],
        4: [1, 1, 1, 2, 3],
        5: [1, 1, 2, 3, 4],
    }[len(devices)]
    return [devices[0], *(devices[i] for i in middle), devices[0]]


def runners(devices: list[str]) -> list[str]:
    """Those that run blocks at first."""
    return [device for device in devices if not device.startswith("standby")]


def programs(devices: list[str]) -> dict[str, tuple]:
    """Every device's instructions. The embedding's output skips to the trimming block."""
    owner = owners(runners(devices))
    instructions: dict[str, list] = {
        d: [Load(block=b) for b in range(BLOCKS) if owner[b] == d] for d in devices
    }
    for device in devices:
        if device in [owner[block] for block in MIXERS]:
            run = Run(template="positions", block=None, inputs=(POSITIONS,), outputs=(TABLE,))
            instructions[device].append(run)
    for block in range(BLOCKS):
        sources = [FIRST + block - 1] if block else []
        if block == BLOCKS - 2:
            sources.append(FIRST)
        for tensor in sources:
            maker, device = owner[tensor - FIRST], owner[block]
            if maker != device:
                rows = "last" if block >= BLOCKS - 2 else "all"
                instructions[maker].append(Send(tensor=tensor, destination=device, rows=rows))
        for tensor in sources:
            maker, device = owner[tensor - FIRST], owner[block]
            if maker != device:
                instructions[device].append(Receive(tensor=tensor, source=maker))
                if tensor != FIRST:
                    instructions[maker].append(Release(tensor=tensor))
        instructions[owner[block]].append(_run(block))
    return {device: tuple(one) for device, one in instructions.items()}


def _run(block: int) -> Run:
    last, outputs = FIRST + block - 1, (FIRST + block,)
    if block == 0:
        return Run(template="t0", block=0, inputs=(IDS,), outputs=outputs)
    if block in MIXERS:
        return Run(template="t1", block=block, inputs=(last, TABLE, POSITIONS), outputs=outputs)
    if block == BLOCKS - 2:
        return Run(template="t2", block=block, inputs=(last, FIRST), outputs=outputs, rows="last")
    return Run(template="t3", block=block, inputs=(last,), outputs=(LOGITS,), rows="last")


def graph(wire: str = "f32") -> GraphRecord:
    """`wire`: how what blocks make travels."""
    hidden = (1, -1, WIDTH)
    tensors = [
        Tensor(id=IDS, name="input_ids", dtype="int64", shape=(1, -1)),
        Tensor(id=POSITIONS, name="position_ids", dtype="int64", shape=(1, -1)),
        Tensor(id=LOGITS, name="logits", dtype="float32", shape=(1, -1, VOCABULARY)),
        Tensor(id=TABLE, name="table", dtype="float32", shape=hidden),
    ]
    tensors += [
        Tensor(id=FIRST + i, name=f"h{i}", dtype="float32", shape=hidden, wire=WireFormat(wire))
        for i in range(BLOCKS - 1)
    ]
    runs = [_run(block) for block in range(BLOCKS)]
    return GraphRecord(
        tensors=tuple(tensors),
        blocks=tuple(
            GraphBlock(id=i, template=run.template, inputs=run.inputs, outputs=run.outputs, rows=run.rows)
            for i, run in enumerate(runs)
        ),
        positions=GraphPositions(template="positions", inputs=(POSITIONS,), outputs=(TABLE,)),
        input_ids=IDS,
        position_ids=POSITIONS,
        logits=LOGITS,
    )


def stages(owner: list[str]) -> tuple[StageRecord, ...]:
    """The stages of blocks on the devices `owner`."""
    edges = [b for b in range(BLOCKS) if b == 0 or owner[b] != owner[b - 1]]
    return tuple(
        StageRecord(devices=(owner[start],), shares=(1.0,), blocks=(start, stop), window=0)
        for start, stop in zip(edges, [*edges[1:], BLOCKS], strict=True)
    )


def transmissions(owner: list[str]) -> tuple[TransmissionRecord, ...]:
    """What travels between blocks on the devices `owner`: each output to the next block, the embedding's to the
    trimming block as well."""
    ways = [(block, block + 1) for block in range(BLOCKS - 1)]
    ways.insert(1, (0, BLOCKS - 2))
    sent = dict.fromkeys((a, owner[a], owner[b]) for a, b in ways if owner[a] != owner[b])
    return tuple(
        TransmissionRecord(tensor=f"h{a}", kind="sequential", source=source, destination=to, bytes=WIDTH * 4)
        for a, source, to in sent
    )


def envelope(devices: list[str]) -> Envelope:
    """Every device could run every block: as fast as the others, over links of 1 ms and 100 MB/s."""
    blocks = tuple(
        EnvelopeBlock(
            id=block, weights_bytes=1 << 20, cache_bytes=CONTEXT * WIDTH * 4 if block in MIXERS else 0,
            activation_bytes=1 << 16, decode_s=1e-3, chunk_s=4e-3,
        )
        for block in range(BLOCKS)
    )  # fmt: skip
    return Envelope(
        devices={
            name: EnvelopeDevice(
                memory_bytes=1 << 30,
                runtime_bytes=1 << 20,
                disk_bytes_per_s=1e9,
                standby=name not in runners(devices),
                blocks=blocks,
            )
            for name in sorted(devices)
        },
        links=tuple(
            LinkRecord(source=a, destination=b, bytes_per_s=1e8, latency_s=1e-3)
            for a in sorted(devices)
            for b in sorted(devices)
            if a != b
        ),
    )


def record(
    device: str, devices: list[str], addresses: dict[str, str] | None = None, **changes: object
) -> Slice:
    caches = (CacheArray(dtype="float32", shape=(1, CONTEXT, WIDTH), token_axes=(1,)),)
    templates = ["t0", *["t1" for _ in MIXERS], "t2", "t3"]
    fields = {
        "schema": SCHEMA,
        "digest": "",
        "bundle": BUNDLE,
        "model": ModelInfo(
            name="synthetic", architecture="Synthetic", precision=Precision.of("f32", "f16"),
            shapes=Shapes(CONTEXT, CHUNK), vocab_size=VOCABULARY, bos_token_id=None, eos_token_ids=(),
        ),
        "device": device,
        "head": devices[0],
        "devices": {
            name: DeviceInfo(
                name=name, target="x86-64-v3", address=(addresses or {}).get(name, "127.0.0.1:0"), threads=1,
                memory_bytes=1 << 30, peak_bytes=1 << 29, isa=Isa.AVX2,
            )
            for name in devices
        },
        "library": "lib/model.so",
        "runtime_library": "lib/libtvm_runtime.so",
        "graph": graph(),
        "stages": stages(owners(runners(devices))),
        "transmissions": transmissions(owners(runners(devices))),
        "envelope": envelope(devices),
        "blocks": tuple(
            BlockEntry(id=i, template=t, file=f"weights/{i}.safetensors", params=(),
                       caches=caches if t == "t1" else ())
            for i, t in enumerate(templates)
        ),
        "program": DeviceProgram(device=device, epoch=1, instructions=programs(devices)[device]),
        "max_payload_bytes": CHUNK * WIDTH * 4,
        "files": {
            name: FileEntry(size_bytes=1 << 20, sha256="")
            for name in ("lib/model.so", "lib/libtvm_runtime.so", *(f"weights/{i}.safetensors" for i in range(BLOCKS)))
        },
    }  # fmt: skip
    return Slice(**{**fields, **changes})


class Parts:
    """Where a device's blocks come from: they are drawn, not read. `read_bytes`: what a disk would have read."""

    def __init__(self) -> None:
        self.read_bytes = 0

    def memory_bytes(self, block: int) -> int:
        return sum(array.nbytes for array in weights()[block])

    def read(self, blocks: Sequence[int], progress: Progress) -> dict[int, Read]:
        parts = weights()
        for block in blocks:
            self.read_bytes += self.memory_bytes(block)
            progress(self.read_bytes, self.read_bytes)
        return {block: Read(parts[block], lambda: None) for block in blocks}


def device(
    name: str,
    devices: list[str],
    functions: Library | None = None,
    resident: Iterable[int] = range(BLOCKS),
    **changes: object,
) -> Device:
    """`resident`: the blocks that are in memory to begin with."""
    described, parts = record(name, devices, **changes), Parts()
    library_of = functions or library()
    read = parts.read(sorted(set(resident) & {b.id for b in described.blocks}), lambda done, total: None)
    store = BlockStore(described, parts, library_of.wrap, read)
    return Device(described, install(described), store, library_of)
