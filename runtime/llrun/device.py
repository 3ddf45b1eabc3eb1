"""A device ready to work: its slice checked, its weights in memory, its library bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llrun.library import Library, load_library
from llrun.links import Limits
from llrun.memory import Array
from llrun.processor import require
from llrun.program import Program, build_program
from llrun.schema import Slice
from llrun.slice import Place, entry_of, verified_file
from llrun.stores import Block
from llrun.weights import read_weights

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
    arrays = _read_blocks(place, program, verify, progress)
    me = record.devices[record.device]
    require(me.isa, me.target)
    library = load_library(
        place.folder / record.runtime_library,
        place.folder / record.library,
        program.templates,
        {block.template for block in record.blocks if block.caches},
        me.threads,
    )
    blocks = {
        block.id: Block(block, tuple(library.wrap(array) for array in arrays[block.id]))
        for block in record.blocks
        if block.id in arrays
    }
    return Device(record, program, blocks, library)


def _read_blocks(
    place: Place, program: Program, verify: bool, progress: Progress
) -> dict[int, tuple[Array, ...]]:
    blocks = [block for block in place.record.blocks if block.id in program.blocks]
    total = sum(entry_of(place, block.file).size_bytes for block in blocks)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    # Tables from which a token reads one row stay in their file; the page cache holds what is used of them.
    return {
        block.id: read_weights(
            place.folder / block.file,
            entry_of(place, block.file),
            block.params,
            mapped=block.id in program.reads_tokens,
            verify=verify,
            progress=advance,
        )
        for block in blocks
    }
