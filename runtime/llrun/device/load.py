"""A device ready to work: its slice checked, its weights in memory, its library bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llrun.device.headroom import check_memory
from llrun.device.library import Library, load_library, sealed_copy
from llrun.device.processor import require
from llrun.device.slice import StoredSlice, check_file, entry_of, open_file
from llrun.device.table import Table
from llrun.device.weights import Source, read_weights
from llrun.errors import INTERNAL, RunError
from llrun.memory import Array, side_by_side
from llrun.programs.graph import token_arguments
from llrun.programs.installed import Installed, install
from llrun.programs.layouts import Limits
from llrun.schema import BlockEntry, Slice

Progress = Callable[[int, int], None]
# Read as any block: its memory is less than a small model's time for asking for each row (10 us of a token's 1.5 ms).
SMALL_TABLE_BYTES = 1 << 20


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
        return Limits(model.shapes.chunk, model.shapes.context, self.record.max_payload_bytes)


def load_device(stored: StoredSlice, verify: bool, progress: Progress) -> Device:
    """Read and check everything in the slice; only then load and bind the library.

    Raises RunError R208 before weights are read when the plan has the device take more memory than there is.
    `verify` False skips the hashing of weights, nothing else. `progress`: bytes read, bytes in all.
    """
    record = stored.record
    installed = install(record)
    me = record.devices[record.device]
    require(me.isa, me.target)
    for block in record.blocks:  # of the sizes that the slice says, before memory of these sizes is asked for
        open_file(stored, block.file).close()
    check_memory(me)
    runtime, compiled = (sealed_copy(stored, name) for name in (record.runtime_library, record.library))
    skipped = {block.file for block in record.blocks} | {record.library, record.runtime_library}
    for name in sorted(record.files.keys() - skipped):
        check_file(stored, name)
    tables, arrays = _read_blocks(stored, verify, progress)
    library = load_library(
        runtime,
        compiled,
        installed.templates | {block.template for block in record.blocks},
        {block.template for block in record.blocks if block.caches},
        me.threads,
    )
    library = by_rows(library, tables)
    held = {block.id: Block(block, tuple(map(library.wrap, arrays[block.id]))) for block in record.blocks}
    return Device(record, installed, held, library)


@dataclass(frozen=True)
class Lookup:
    """A template whose argument number `ids`, token ids, says which rows of `table` it reads."""

    template: str
    ids: int
    table: Table


def by_rows(library: Library, lookups: Sequence[Lookup]) -> Library:
    """`library` with the functions of templates that read tables holding no more of them than the rows of these
    tokens, and those for the time of a call."""
    tables: dict[str, list[Lookup]] = {}
    for lookup in lookups:
        tables.setdefault(lookup.template, []).append(lookup)

    def held_for_a_call(function: Callable[..., Any], reads: Sequence[Lookup]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            try:
                for lookup in reads:
                    lookup.table.hold(np.unique(library.unwrap(arguments[lookup.ids])).tolist())
                return function(*arguments)
            finally:
                for lookup in reads:
                    lookup.table.release()

        return call

    functions = {
        name: held_for_a_call(function, reads) if (reads := tables.get(name.rpartition("_")[0])) else function
        for name, function in library.functions.items()
    }
    return replace(library, functions=functions)


def _read_blocks(
    stored: StoredSlice, verify: bool, progress: Progress
) -> tuple[list[Lookup], dict[int, tuple[Array, ...]]]:
    """The arrays of each block, and those of them that are read by token."""
    blocks = stored.record.blocks
    total = sum(entry_of(stored, block.file).size_bytes for block in blocks)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    ids = token_arguments(stored.record.graph)
    by_token = {
        block.id
        for block in blocks
        if block.id in ids
        and any(param.by_token for param in block.params)
        and entry_of(stored, block.file).size_bytes > SMALL_TABLE_BYTES
    }
    held = [block for block in blocks if block.id not in by_token]
    regions = _room([entry_of(stored, block.file).size_bytes for block in held])
    lookups: list[Lookup] = []
    arrays: dict[int, tuple[Array, ...]] = {}
    for block in blocks:
        source = Source(stored.folder / block.file, entry_of(stored, block.file), block.params)
        if block.id in by_token:
            table = Table(open_file(stored, block.file), source, verify, advance)
            lookups.append(Lookup(block.template, ids[block.id], table))
            arrays[block.id] = table.arrays
        else:
            with open_file(stored, block.file) as file:
                arrays[block.id] = read_weights(file, source, next(regions), verify, advance)
    return lookups, arrays


def _room(sizes: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    try:
        return iter(side_by_side(sizes))
    except (OSError, OverflowError, ValueError) as error:
        reason = f"this system gives no memory for {sum(sizes)} bytes of weights: {error}"
        raise RunError("R208", reason, INTERNAL) from error
