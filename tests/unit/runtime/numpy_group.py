"""The numpy model with some of its blocks cut for a group: real cuts, whose sums depend on the order of their terms.

Of a mixing block a rank has some columns of what is cached, and the rows of the matrix that they meet; the tail is the
rest. Of the trimming block it has some columns. Each device of a group holds its pieces, `spares` whole blocks, and of
`others`, divisions of the same blocks, its pieces too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import msgspec
import numpy as np
import numpy_model
from numpy_model import BLOCKS, CONTEXT, FIRST, MIXERS, POSITIONS, TABLE, WIDTH, one_row

from llrun.device.blocks import BlockStore, Progress, Read
from llrun.device.library import Library
from llrun.device.load import Device
from llrun.programs.installed import install
from llrun.programs.transmissions import transmissions
from llrun.programs.write import idle_program, write_programs
from llrun.schema import (
    AllReduceKind,
    BlockEntry,
    CacheArray,
    Envelope,
    EnvelopeBlock,
    FileEntry,
    GraphGroup,
    GraphRecord,
    GroupBlock,
    Slice,
    StageRecord,
    Tensor,
    WireFormat,
)

TRIM, HIDDEN = BLOCKS - 2, (1, -1, WIDTH)


@dataclass(frozen=True)
class Group:
    """`edges`: where the columns of each rank begin and end; `blocks`: half open. `wire`: how activations travel.
    `division`: its number among the ways to cut the blocks."""

    devices: tuple[str, ...]
    kind: AllReduceKind
    root: int = 0
    edges: tuple[int, ...] = (0, 6, 16)
    blocks: tuple[int, int] = (1, BLOCKS - 1)
    wire: WireFormat = WireFormat.F32
    division: int = 0

    @cached_property
    def shares(self) -> tuple[float, ...]:
        return tuple((b - a) / WIDTH for a, b in zip(self.edges, self.edges[1:], strict=False))

    @property
    def count(self) -> int:
        return len(self.devices)

    def stage(self, start: int | None = None, stop: int | None = None) -> StageRecord:
        return StageRecord(
            devices=self.devices,
            shares=self.shares,
            blocks=(self.blocks[0] if start is None else start, self.blocks[1] if stop is None else stop),
            window=0,
            all_reduce=self.kind,
            root=self.root,
            division=self.division,
        )

    def partial(self, block: int, rank: int) -> int:
        return 100 + 10 * block + rank

    def sums(self, block: int) -> tuple[int, ...]:
        made = {AllReduceKind.STAR: 1, AllReduceKind.DIRECT: 0, AllReduceKind.RING: self.count - 1}
        return tuple(200 + 10 * block + i for i in range(made[self.kind]))

    def block(self, block: int) -> GroupBlock:
        came, mixes = FIRST + block - 1, block in MIXERS
        name = "t1" if mixes else "t2"
        return GroupBlock(
            block=block,
            shards=tuple(f"{name}_{a}_{b}" for a, b in zip(self.edges, self.edges[1:], strict=False)),
            inputs=(came, POSITIONS) if mixes else (came,),
            partials=tuple(self.partial(block, rank) for rank in range(self.count)),
            sums=self.sums(block),
            tail=f"{name}_tail",
            tail_inputs=(came, TABLE) if mixes else (FIRST,),
        )


def split(devices: Sequence[str], kind: AllReduceKind, root: int = 0, **fields: object) -> Group:
    """A group of these devices, with unequal shares."""
    edges = {2: (0, 6, 16), 3: (0, 5, 7, 16), 4: (0, 3, 8, 12, 16)}[len(devices)]
    return Group(tuple(devices), kind, root, edges, **fields)


def graph(*groups: Group) -> GraphRecord:
    """The model's graph, with what each of the groups, of the same size and kind, can compute."""
    (wire,) = {group.wire for group in groups}
    whole = numpy_model.graph(wire)
    names = {
        tensor: f"{what}{block}_{i}"
        for group in groups
        for block in range(*group.blocks)
        for what, tensors in (("p", group.block(block).partials), ("s", group.sums(block)))
        for i, tensor in enumerate(tensors)
    }
    return msgspec.structs.replace(
        whole,
        tensors=(
            *whole.tensors,
            *(
                Tensor(id=id, name=name, dtype="float32", shape=HIDDEN, wire=wire)
                for id, name in sorted(names.items())
            ),
        ),
        groups=tuple(
            GraphGroup(
                devices=group.devices,
                shares=group.shares,
                all_reduce=group.kind,
                root=group.root,
                blocks=tuple(group.block(block) for block in range(*group.blocks)),
                division=group.division,
            )
            for group in groups
        ),
    )


def stages(head: str, group: Group) -> tuple[StageRecord, ...]:
    """The head's, the group's, the head's."""
    start, stop = group.blocks
    return StageRecord.on(head, 0, start), group.stage(), StageRecord.on(head, stop, BLOCKS)


# --- what is computed ------------------------------------------------------------------------------------------------


def mix_part(start: int, stop: int):
    def part(x, ids, w, slots, caches):
        """The columns' share of (mean of the cache's rows 0..p) W."""
        first, n = int(ids[0, 0]), x.shape[1]
        assert np.array_equal(ids[0], np.arange(first, first + n))
        cache = caches[slots[0], 0]
        cache[first : first + n] = x[0][:, start:stop]
        sums = np.cumsum(cache[: first + n].astype(np.float64), axis=0)[first:]
        return numpy_model.times((sums / (ids[0][:, None] + 1)).astype(np.float32), w)[None]

    return part


def by_rows(part):
    """A row of each of several sequences, each with its own slot."""

    def batch(x, ids, w, slots, caches):
        count = x.shape[1]
        rows = [part(x[:, i : i + 1], ids[:, i : i + 1], w, slots[i : i + 1], caches) for i in range(count)]
        return np.concatenate(rows, axis=1)

    return batch


def trim_part(start: int, stop: int):
    def part(x):
        shown = np.zeros_like(x)
        shown[..., start:stop] = x[..., start:stop]
        return shown

    return part


def add(*parts: np.ndarray) -> np.ndarray:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def mix_tail(*given: np.ndarray) -> np.ndarray:
    *parts, x, table = given
    return (x + np.tanh(add(*parts)) * table).astype(np.float32)


def trim_tail(*given: np.ndarray) -> np.ndarray:
    *parts, skip = given
    return numpy_model.trim(add(*parts), skip)


def library(group: Group, *others: Group, **replaced: object) -> Library:
    """The model's functions, and those of the groups' pieces and sums."""
    whole = numpy_model.library(**replaced)
    kinds: dict[str, object] = {
        "t1_tail": mix_tail,
        "t2_tail": trim_tail,
        "sum_2": add,
        **{f"sum_{each.count}": add for each in (group, *others)},
    }
    batches = {}
    for a, b in (pair for each in (group, *others) for pair in pairwise(each.edges)):
        kinds |= {f"t1_{a}_{b}": mix_part(a, b), f"t2_{a}_{b}": trim_part(a, b)}
        batches[f"t1_{a}_{b}_batch"] = by_rows(mix_part(a, b))
    kinds |= {name: function for name, function in replaced.items() if name in kinds}
    functions = {f"{name}_{kind}": f for name, f in kinds.items() for kind in ("prefill", "batch")}
    functions |= {f"{name}_decode": one_row(f) for name, f in kinds.items()}
    return Library({**whole.functions, **functions, **batches}, whole.wrap, whole.unwrap)


# --- slices ----------------------------------------------------------------------------------------------------------


def pieces(group: Group, device: str) -> list[BlockEntry]:
    """What a device of the group holds of its blocks."""
    if device not in group.devices:
        return []
    rank, found, first = group.devices.index(device), [], BLOCKS * (1 + 2 * group.division)
    width = group.edges[rank + 1] - group.edges[rank]
    cache = CacheArray(dtype="float32", shape=(1, CONTEXT, width), token_axes=(1,))
    for block in range(*group.blocks):
        cut, caches = group.block(block), (cache,) if block in MIXERS else ()
        for id, template, own in (
            (first + 2 * block, cut.shards[rank], caches),
            (first + 2 * block + 1, cut.tail, ()),
        ):
            file = f"weights/{id}.safetensors"
            found.append(BlockEntry(id=id, template=template, file=file, params=(), caches=own))
    return found


def blocks_of(
    name: str,
    devices: Sequence[str],
    group: Group,
    spares: Mapping[str, Iterable[int]],
    others: Sequence[Group] = (),
) -> list[BlockEntry]:
    """What a device holds: the head its own blocks, each what it is to spare, and its pieces."""
    own = set(spares.get(name, ())) | (
        {*range(group.blocks[0]), *range(group.blocks[1], BLOCKS)} if name == devices[0] else set()
    )
    whole = numpy_model.record(name, list(devices)).blocks
    cut = [piece for each in (group, *others) for piece in pieces(each, name)]
    return [*(block for block in whole if block.id in own), *cut]


def envelope(
    devices: Sequence[str], group: Group, spares: Mapping[str, Iterable[int]], others: Sequence[Group] = ()
) -> Envelope:
    """As the whole model's, of what is held; a piece takes its share of what the block takes."""
    whole = numpy_model.envelope(list(devices))

    def each(block: BlockEntry, name: str) -> EnvelopeBlock:
        cut = (group, *others)[(block.id - BLOCKS) // (2 * BLOCKS)] if block.id >= BLOCKS else None
        share = cut.shares[cut.devices.index(name)] if cut else 1.0
        rows = sum(int(np.prod(cache.shape)) * 4 for cache in block.caches)
        seconds = share if block.id < BLOCKS or block.id % 2 == BLOCKS % 2 else 0.01
        return EnvelopeBlock(
            id=block.id, weights_bytes=int(share * (1 << 20)), cache_bytes=rows, activation_bytes=1 << 16,
            decode_s=seconds * 1e-3, chunk_s=seconds * 4e-3,
        )  # fmt: skip

    held = {name: blocks_of(name, devices, group, spares, others) for name in devices}
    return msgspec.structs.replace(
        whole,
        devices={
            name: msgspec.structs.replace(device, blocks=tuple(each(block, name) for block in held[name]))
            for name, device in whole.devices.items()
        },
    )


def record(
    name: str,
    devices: Sequence[str],
    group: Group,
    spares: Mapping[str, Iterable[int]] | None = None,
    others: Sequence[Group] = (),
    **changes: object,
) -> Slice:
    """The slice of a device where the head has both ends and the group what is between."""
    spares, whole = spares or {}, graph(group, *others)
    planned = changes.pop("stages", stages(devices[0], group))
    sent = transmissions(whole, planned)
    program = write_programs(whole, planned, sent, 1).get(name) or idle_program(name, 1)
    blocks = tuple(blocks_of(name, devices, group, spares, others))
    files = ("lib/model.so", "lib/libtvm_runtime.so", *(block.file for block in blocks))
    return numpy_model.record(
        name,
        list(devices),
        **{
            "graph": whole,
            "stages": planned,
            "transmissions": sent,
            "envelope": envelope(devices, group, spares, others),
            "blocks": blocks,
            "program": program,
            "files": {file: FileEntry(size_bytes=1 << 20, sha256="") for file in files},
            **changes,
        },
    )


class Pieces(numpy_model.Parts):
    """Where blocks and pieces come from."""

    def __init__(self, groups: Sequence[Group], device: str) -> None:
        super().__init__()
        self._groups, self._device = groups, device

    def _arrays(self, block: int) -> tuple[np.ndarray, ...]:
        if block < BLOCKS:
            return numpy_model.weights()[block]
        division, piece = divmod(block - BLOCKS, 2 * BLOCKS)
        number, tail = divmod(piece, 2)
        if tail or number not in MIXERS:
            return ()
        group = self._groups[division]
        rank = group.devices.index(self._device)
        start, stop = group.edges[rank : rank + 2]
        return (np.ascontiguousarray(numpy_model.weights()[number][0][start:stop]),)

    def memory_bytes(self, block: int) -> int:
        return sum(array.nbytes for array in self._arrays(block))

    def read(self, blocks: Sequence[int], progress: Progress) -> dict[int, Read]:
        for block in blocks:
            self.read_bytes += self.memory_bytes(block)
            progress(self.read_bytes, self.read_bytes)
        return {block: Read(self._arrays(block), lambda: None) for block in blocks}


def device(
    name: str,
    devices: Sequence[str],
    group: Group,
    spares: Mapping[str, Iterable[int]] | None = None,
    functions: Library | None = None,
    others: Sequence[Group] = (),
    **changes: object,
) -> Device:
    """A device with what its program runs in memory."""
    described = record(name, devices, group, spares, others, **changes)
    parts = Pieces((group, *others), name)
    installed, library_of = install(described), functions or library(group, *others)
    store = BlockStore(
        described, parts, library_of.wrap, parts.read(sorted(installed.blocks), lambda done, total: None)
    )
    return Device(described, installed, store, library_of)
