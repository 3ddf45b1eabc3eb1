"""What a slice may claim: bounds on every name and number of it, before any is used.

A digest tells damage, not intent: whoever wrote the slice could write its digest too. So a name that leads out of the
folder, two blocks of one id, or a shape whose bytes no memory holds is refused by name, and asks the system nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from math import prod

from llrun.device.claims_of_envelope import cache_faults, envelope_faults
from llrun.device.weights import DTYPES
from llrun.files import name_fault
from llrun.programs.effects import all_effects, loaded_blocks
from llrun.programs.graph import check_graph
from llrun.schema import BlockEntry, ModelInfo, Slice

# Far beyond any real slice, and small enough for everything made in these numbers.
MOST = {
    "context": 1 << 24,
    "chunk": 1 << 16,
    "vocab_size": 1 << 24,
    "threads": 4096,
    "devices": 1024,
    "blocks": 1 << 14,
    "tensors": 1 << 17,
    "instructions": 1 << 18,
    "files": 1 << 15,
    "epoch": 1 << 31,
    "id": 1 << 31,
}
MOST_BYTES = 1 << 44  # of a file, of a sequence's caches, of a device's memory
MOST_DIMENSIONS = 8
LONGEST_TEXT = 256
ITEM_BYTES = {"float32": 4, "float16": 2, "int64": 8, "int32": 4, "int8": 1, "uint8": 1}


def slice_faults(record: Slice) -> Iterator[str]:
    """Everything in `record` that no slice can be right with, in words."""
    yield from _counts(record)
    yield from _texts(record)
    yield from _model(record.model)
    yield from _devices(record)
    yield from _files(record)
    yield from _tensors(record)
    yield from _blocks(record)
    yield from _payload(record)
    yield from _stages(record)
    yield from envelope_faults(record)


def _beyond(what: str, value: int, key: str) -> Iterator[str]:
    if not 0 <= value <= MOST[key]:
        yield f"{what} is {value}, at most {MOST[key]} can be"


def _counts(record: Slice) -> Iterator[str]:
    counts = {
        "devices": len(record.devices),
        "blocks": max(len(record.blocks), len(record.graph.blocks)),
        "tensors": len(record.graph.tensors),
        "instructions": len(record.program.instructions),
        "files": len(record.files),
    }
    for key, count in counts.items():
        yield from _beyond(f"the number of {key}", count, key)
    yield from _beyond("epoch", record.program.epoch, "epoch")


def _texts(record: Slice) -> Iterator[str]:
    """Names are printed and sent: what cannot be printed may move a terminal's cursor."""
    model = record.model
    texts = [record.bundle, record.device, record.head, model.name, model.architecture, *record.devices]
    texts += [text for d in record.devices.values() for text in (d.name, d.target, d.address)]
    texts += [tensor.name for tensor in record.graph.tensors]
    texts += [text for block in record.blocks for text in (block.template, *(p.name for p in block.params))]
    for text in texts:
        if not text.isprintable() or len(text) > LONGEST_TEXT:
            yield f"{text[:40]!r} is not a name of at most {LONGEST_TEXT} printable characters"


def _model(model: ModelInfo) -> Iterator[str]:
    shapes = model.shapes
    for key, value in (
        ("context", shapes.context),
        ("chunk", shapes.chunk),
        ("vocab_size", model.vocab_size),
    ):
        yield from _beyond(key, value, key)
    special = [*model.eos_token_ids, *([] if model.bos_token_id is None else [model.bos_token_id])]
    for token in special:
        if not 0 <= token < model.vocab_size:
            yield f"token {token} is not in the vocabulary of {model.vocab_size}"


def _devices(record: Slice) -> Iterator[str]:
    for name in (record.device, record.head):
        if name not in record.devices:
            yield f"it does not describe device {name}"
    if record.program.device != record.device:
        yield f"its program is of device {record.program.device!r}, it is of {record.device}"
    for name, device in record.devices.items():
        if device.name != name:
            yield f"device {name} is called {device.name} as well"
        yield from _beyond(f"device {name}: threads", device.threads, "threads")
        if device.memory_bytes > MOST_BYTES:
            yield f"device {name}: memory_bytes is {device.memory_bytes}, at most {MOST_BYTES} can be"


def _files(record: Slice) -> Iterator[str]:
    for name, entry in record.files.items():
        fault = name_fault(name)
        if fault:
            yield f"the file name {name[:200]!r} {fault}"
        if entry.size_bytes > MOST_BYTES:
            yield f"file {name[:200]!r} has {entry.size_bytes} bytes, at most {MOST_BYTES} can be"
    named = [record.library, record.runtime_library, *(block.file for block in record.blocks)]
    for name in named:
        if name not in record.files:
            yield f"{name[:200]!r} is not among its files"
    for twice in _twice(named):
        yield f"file {str(twice)[:200]!r} is to be two things at once"


def _tensors(record: Slice) -> Iterator[str]:
    yield from check_graph(record.graph)
    for tensor in record.graph.tensors:
        rows = tuple(record.model.shapes.chunk if size == -1 else size for size in tensor.shape)
        yield from _array(f"tensor {tensor.name}", tensor.dtype, rows, ITEM_BYTES, MOST_BYTES)
        yield from _beyond(f"the id of tensor {tensor.name}", tensor.id, "id")


def _blocks(record: Slice) -> Iterator[str]:
    for id in _twice(block.id for block in record.blocks):
        yield f"two blocks have the id {id}"
    for block_id in _twice(loaded_blocks(record.program.instructions)):
        yield f"its program loads block {block_id} twice"
    for block in record.blocks:
        yield from _beyond("the id of a block", block.id, "id")
        yield from _block(record, block)
    caches = sum(
        prod(cache.shape) * ITEM_BYTES.get(cache.dtype, 8)
        for block in record.blocks
        for cache in block.caches
        if len(cache.shape) <= MOST_DIMENSIONS
    )
    if caches > MOST_BYTES:
        yield f"the cache of a sequence takes {caches} bytes, at most {MOST_BYTES} can be"


def _block(record: Slice, block: BlockEntry) -> Iterator[str]:
    entry = record.files.get(block.file)
    room = entry.size_bytes if entry else 0
    for param in block.params:
        yield from _array(f"block {block.id}: {param.name}", param.dtype, param.shape, DTYPES.values(), room)
        if param.by_token and not param.shape:
            yield f"block {block.id}: {param.name} has no rows to read by token"
    for cache in block.caches:
        yield from _array(f"block {block.id}: a cache", cache.dtype, cache.shape, ITEM_BYTES, MOST_BYTES)
        yield from cache_faults(f"block {block.id}: a cache", cache, record.model.shapes.context)


def _array(
    what: str, dtype: str, shape: tuple[int, ...], dtypes: Collection[str], most_bytes: int
) -> Iterator[str]:
    if dtype not in dtypes:
        yield f"{what} has the dtype {dtype[:40]!r}, not one of {', '.join(sorted(dtypes))}"
    elif len(shape) > MOST_DIMENSIONS or any(size < 1 for size in shape):
        yield f"{what} has the shape {list(shape[:MOST_DIMENSIONS])}: up to {MOST_DIMENSIONS} positive numbers can be"
    elif prod(shape) * ITEM_BYTES[dtype] > most_bytes:
        yield f"{what} takes {prod(shape) * ITEM_BYTES[dtype]} bytes, at most {most_bytes} can be"


def _payload(record: Slice) -> Iterator[str]:
    """Messages are received into memory of their size: no more than a chunk of the largest tensor described."""
    sizes = [
        prod(record.model.shapes.chunk if size == -1 else size for size in tensor.shape)
        * ITEM_BYTES.get(tensor.dtype, 0)
        for tensor in record.graph.tensors
        if len(tensor.shape) <= MOST_DIMENSIONS
    ]
    if record.max_payload_bytes > max([1, *sizes]):
        yield f"a message has up to {record.max_payload_bytes} bytes, a chunk of its largest tensor {max([1, *sizes])}"
    peers = {peer for does in all_effects(record.program.instructions) for peer in (*does.hears, *does.tells)}
    for peer in sorted(peers - record.devices.keys()):
        yield f"its program speaks to {peer[:40]!r}, which is not a device of it"


def _stages(record: Slice) -> Iterator[str]:
    """What programs are written from: stages of blocks that there are, on devices that there are."""
    last = 0
    for stage in record.stages:
        start, stop = stage.blocks
        if start != last or not start < stop <= len(record.graph.blocks):
            yield f"a stage has the blocks {start} to {stop} of {len(record.graph.blocks)}, {last} is next"
        last = stop
    named = {device for stage in record.stages for device in stage.devices}
    named |= {device for group in record.graph.groups for device in group.devices}
    named |= {device for sent in record.transmissions for device in (sent.source, sent.destination)}
    for device in sorted(named - record.devices.keys()):
        yield f"its stages, groups or transmissions name {device[:40]!r}, which is not a device of it"


def _twice(values: Iterable[int | str]) -> list[int | str]:
    return [value for value, count in Counter(values).items() if count > 1]
