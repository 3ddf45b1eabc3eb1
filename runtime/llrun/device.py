"""A device ready to work: its slice checked, its weights in memory, its library bound."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from llrun.library import Library, load_library
from llrun.links import Limits
from llrun.memory import Array, side_by_side
from llrun.processor import require
from llrun.program import Program, build_program
from llrun.schema import Slice
from llrun.slice import Place, entry_of, verified_file
from llrun.stores import Block
from llrun.weights import map_table, read_weights

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Device:
    record: Slice
    program: Program
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
    program = build_program(record)
    weights = {block.file for block in record.blocks}
    for name in sorted(record.files.keys() - weights):
        verified_file(place, name)
    tables = _tables(place, program)
    arrays = _read_blocks(place, program, tables, verify, progress)
    me = record.devices[record.device]
    require(me.isa, me.target)
    library = load_library(
        place.folder / record.runtime_library,
        place.folder / record.library,
        program.templates,
        {block.template for block in record.blocks if block.caches},
        me.threads,
    )
    readers = {block.template for block in record.blocks if block.id in tables}
    library = letting_go(library, readers, tuple(tables.values()))
    blocks = {
        block.id: Block(block, tuple(library.wrap(array) for array in arrays[block.id]))
        for block in record.blocks
        if block.id in arrays
    }
    return Device(record, program, blocks, library)


def _tables(place: Place, program: Program) -> dict[int, mmap.mmap]:
    """The files of blocks of which a token reads one row, mapped, by block."""
    blocks = [block for block in place.record.blocks if block.id in program.reads_tokens]
    return {block.id: map_table(place.folder / block.file, entry_of(place, block.file)) for block in blocks}


def letting_go(library: Library, templates: Set[str], tables: Sequence[mmap.mmap]) -> Library:
    """`library` with the functions of `templates` giving the tables' pages back to the system after each call.

    The system maps neighbours along with a row that is touched (100 KB a row where the page cache holds large
    folios): without this a few hundred tokens make the whole table resident. It stays in the page cache, and
    giving back and finding a row again take 9 us together.
    """

    def then_let_go(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            result = function(*arguments)
            for table in tables:
                table.madvise(mmap.MADV_DONTNEED)
            return result

        return call

    functions = {
        name: then_let_go(function) if name.rpartition("_")[0] in templates else function
        for name, function in library.functions.items()
    }
    return replace(library, functions=functions)


def _read_blocks(
    place: Place, program: Program, tables: Mapping[int, mmap.mmap], verify: bool, progress: Progress
) -> dict[int, tuple[Array, ...]]:
    blocks = [block for block in place.record.blocks if block.id in program.blocks]
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
