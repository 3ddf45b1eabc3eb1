"""A device ready to work: its slice checked, the weights of its program in memory, its library bound."""

from __future__ import annotations

from dataclasses import dataclass

from llrun.device.blocks import BlockStore, Progress, Resident
from llrun.device.headroom import check_memory
from llrun.device.library import Library, load_library, sealed_copy
from llrun.device.lookups import by_rows
from llrun.device.processor import require
from llrun.device.reading import BlockFiles
from llrun.device.slice import StoredSlice, check_file, open_file
from llrun.programs.groups import sum_templates
from llrun.programs.installed import Installed, install
from llrun.programs.layouts import Limits
from llrun.schema import Slice


@dataclass(frozen=True)
class Device:
    record: Slice
    installed: Installed
    store: BlockStore
    library: Library

    @property
    def name(self) -> str:
        return self.record.device

    @property
    def blocks(self) -> Resident:
        """The blocks that are in memory, whatever is read or dropped from now on."""
        return self.store.resident

    @property
    def limits(self) -> Limits:
        model = self.record.model
        return Limits(model.shapes.chunk, model.shapes.context, self.record.max_payload_bytes)


def templates_of(record: Slice) -> frozenset[str]:
    """The templates that any program of the device may call, whatever its own one does: those of all its blocks, spares
    too, what is computed of positions, and the sums that it may make in a group."""
    positions = record.graph.positions
    own = frozenset(block.template for block in record.blocks) | sum_templates(record.graph, record.device)
    return own | ({positions.template} if positions else set())


def load_device(stored: StoredSlice, verify: bool, progress: Progress) -> Device:
    """Read and check what the slice's program needs; only then load and bind the library. Spares stay on disk. Blocks
    that stream are read once, to be checked.

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
    files = BlockFiles(stored, verify)
    streamed = record.envelope.devices[record.device].streamed
    whole = sorted(set(installed.blocks).difference(streamed))
    first, then = files.size_bytes(whole), files.size_bytes(streamed)
    read = files.read(whole, lambda done, total: progress(done, total + then))
    streams = files.streams(lambda done, total: progress(first + done, first + total))
    library = load_library(
        runtime,
        compiled,
        templates_of(record),
        {block.template for block in record.blocks if block.caches},
        me.threads,
    )
    store = BlockStore(record, files, library.wrap, read, streams)
    return Device(record, installed, store, by_rows(library, store.lookups(files.by_token)))
