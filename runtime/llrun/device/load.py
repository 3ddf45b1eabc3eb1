"""A device ready to work: its slice checked, its weights in memory, its library bound."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llrun.device.library import Library, load_library
from llrun.device.processor import require
from llrun.device.slice import Place, entry_of, verified_file
from llrun.device.weights import map_table, read_weights, take_rows
from llrun.memory import Array, side_by_side
from llrun.programs.installed import Installed, install
from llrun.programs.layouts import Limits
from llrun.schema import BlockEntry, Slice

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Block:
    """`params`: the weights as its functions' arguments, in order."""

    entry: BlockEntry
    params: tuple[Any, ...]


@dataclass(frozen=True)
class Device:
    record: Slice
    installed: Installed
    blocks: Mapping[int, Block]
    library: Library

    @property
    def name(self) -> str:
        return self.record.device

    @property
    def limits(self) -> Limits:
        model = self.record.model
        return Limits(model.chunk, model.context, self.record.max_payload_bytes)


def load_device(place: Place, verify: bool, progress: Progress) -> Device:
    """Read and check everything in the slice; only then load and bind the library.

    `verify` False skips the hashing of weights, nothing else. `progress`: bytes read, bytes in all.
    """
    record = place.record
    installed = install(record)
    weights = {block.file for block in record.blocks}
    for name in sorted(record.files.keys() - weights):
        verified_file(place, name)
    tables = _tables(place, installed)
    arrays = _read_blocks(place, tables, verify, progress)
    me = record.devices[record.device]
    require(me.isa, me.target)
    library = load_library(
        place.folder / record.runtime_library,
        place.folder / record.library,
        installed.templates,
        {block.template for block in record.blocks if block.caches},
        me.threads,
    )
    readers = {block.template for block in record.blocks if block.id in tables}
    library = by_rows(library, readers, [(region, arrays[id]) for id, region in tables.items()])
    blocks = {
        block.id: Block(block, tuple(library.wrap(array) for array in arrays[block.id]))
        for block in record.blocks
    }
    return Device(record, installed, blocks, library)


def _tables(place: Place, installed: Installed) -> dict[int, mmap.mmap]:
    """The files of blocks of which a token reads one row, mapped, by block."""
    blocks = [block for block in place.record.blocks if block.id in installed.reads_tokens]
    return {block.id: map_table(place.folder / block.file, entry_of(place, block.file)) for block in blocks}


def by_rows(
    library: Library, templates: Set[str], tables: Sequence[tuple[mmap.mmap, Sequence[Array]]]
) -> Library:
    """`library` with the functions of `templates`, whose first argument is token ids, holding no more of the tables
    (each a mapped file and its arrays) than the rows of these tokens, and those for the time of a call.

    When a mapped page is first read, the system maps its neighbours as well (100 KB for a row where the page cache
    holds large folios): a prompt would make the whole table resident. So the rows' pages are taken one by one, as
    copies, which have no neighbours, and given back after the call; the file stays in the page cache. That takes
    some microseconds a token. A system that can't do it maps the neighbours until the call is over.
    """

    def held_for_a_call(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            ids = np.unique(library.unwrap(arguments[0])).tolist()
            for region, arrays in tables:
                take_rows(region, arrays, ids)
            result = function(*arguments)
            for region, _ in tables:
                region.madvise(mmap.MADV_DONTNEED)
            return result

        return call

    functions = {
        name: held_for_a_call(function) if name.rpartition("_")[0] in templates else function
        for name, function in library.functions.items()
    }
    return replace(library, functions=functions)


def _read_blocks(
    place: Place, tables: Mapping[int, mmap.mmap], verify: bool, progress: Progress
) -> dict[int, tuple[Array, ...]]:
    blocks = place.record.blocks
    total = sum(entry_of(place, block.file).size_bytes for block in blocks)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    held = [block for block in blocks if block.id not in tables]
    regions = side_by_side([entry_of(place, block.file).size_bytes for block in held])
    homes = {block.id: region for block, region in zip(held, regions, strict=True)}
    return {
        block.id: read_weights(
            place.folder / block.file,
            entry_of(place, block.file),
            block.params,
            tables[block.id] if block.id in tables else homes[block.id],
            verify=verify,
            progress=advance,
        )
        for block in blocks
    }
