"""Writing a bundle: the layout of docs/design.md, every file hashed as it is written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol

import msgspec

from llcompile.bundle.destination import MANIFEST, staged
from llcompile.bundle.files import FileSet
from llcompile.bundle.records import identity, model_info, plan_record, slice_files
from llcompile.bundle.slices import (
    LIBRARY,
    RUNTIME_LIBRARY,
    Placed,
    device_infos,
    make_slice,
    placed_blocks,
)
from llcompile.ir.cluster import Cluster
from llcompile.ir.errors import CompileError
from llcompile.ir.graph import Block, Graph, Template
from llcompile.ir.model import Model
from llcompile.ir.packing import LoweredTemplate
from llcompile.ir.plan import BlockCost, Plan
from llcompile.ir.shard import Group, WeightCut
from llrun import schema

Progress = Callable[[int, int], None]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class PackBlock(Protocol):
    """Writes a block's weights file at `path`; tells `progress` how many weights each step packed. `cuts`: what each
    weight of `lowered` is of those of `template`, the block's; None: all of them, whole."""

    def __call__(
        self,
        path: Path,
        lowered: LoweredTemplate,
        template: Template,
        block: Block,
        progress: Callable[[int], None],
        cuts: Sequence[WeightCut] | None,
    ) -> schema.FileEntry: ...


class MakePages(Protocol):
    """Makes what the bundle holds for people, by path: content, and whether it is executable."""

    def __call__(
        self,
        model: schema.ModelInfo,
        plan: schema.PlanRecord,
        head: str,
        devices: Mapping[str, schema.DeviceInfo],
    ) -> Mapping[str, tuple[bytes, bool]]: ...


@dataclass(frozen=True)
class Contents:
    """All that goes into a bundle, as records; weights, libraries and tokenizer by reference."""

    model: schema.ModelInfo
    head: str
    plan: schema.PlanRecord
    envelope: schema.Envelope
    devices: dict[str, schema.DeviceInfo]
    programs: dict[str, schema.DeviceProgram]
    placed: dict[str, tuple[Placed, ...]]
    libraries: Mapping[str, Path]
    runtime_libraries: Mapping[str, Path]
    tokenizer: tuple[Path, ...]
    disk_bytes: Mapping[str, int]
    output_blocks: int


def write_bundle(
    out: Path,
    *,
    model: Model,
    graph: Graph,
    costs: Sequence[BlockCost],
    plan: Plan,
    cluster: Cluster,
    lowered: Mapping[str, Sequence[LoweredTemplate]],
    libraries: Mapping[str, Path],
    runtime_libraries: Mapping[str, Path],
    programs: Mapping[str, schema.DeviceProgram],
    described: schema.GraphRecord,
    envelope: schema.Envelope,
    pack: PackBlock,
    pages: MakePages,
    progress: Progress | None = None,
    groups: Sequence[Group] = (),
) -> schema.Manifest:
    """Write the bundle of `plan` at `out`; an older bundle there is replaced once the new one is whole.

    `lowered`, `libraries` and `runtime_libraries` are by target, `programs` by device, `described` is `graph` as
    a record, `envelope` what each device could run. A device gets the blocks that `plan` has it hold, and its pieces of
    `groups`, the plan's. `progress` is told (weights packed, weights to pack). The same arguments give the same bytes:
    wall-clock figures are left out. Raises CompileError B101-B104 and what `pack` raises; then, as on Ctrl-C, nothing
    is left behind.
    """
    record = msgspec.structs.replace(plan_record(plan, graph, costs), solve_s=0.0)
    contents = Contents(
        model=model_info(model, plan),
        head=cluster.head,
        plan=record,
        envelope=envelope,
        devices=device_infos(cluster, plan),
        programs=dict(programs),
        placed={
            name: placed_blocks(name, held, graph, groups, lowered[cluster.device(name).target])
            for name, held in plan.held.items()
        },
        libraries=libraries,
        runtime_libraries=runtime_libraries,
        tokenizer=tuple(Path(p) for p in model.tokenizer_files),
        disk_bytes={d.name: d.disk_bytes for d in cluster.devices if d.disk_bytes is not None},
        output_blocks=graph.output_blocks,
    )
    _check_names(contents)
    with staged(out) as folder:
        files = FileSet(folder)
        files.write("problem.mps", plan.problem.encode())
        if plan.spare_problem:
            files.write("spares.mps", plan.spare_problem.encode())
        made = pages(contents.model, record, contents.head, contents.devices)
        for name, (data, executable) in made.items():
            files.write(name, data, executable)
        _write_payload(files, contents)
        _write_weights(files, contents, graph, pack, progress)
        return _write_records(files, contents, described)


def _check_names(contents: Contents) -> None:
    """Names become folders: refuse what could leave the bundle or clash."""
    for name in contents.devices:
        if not _NAME.fullmatch(name):
            raise CompileError(
                "B104", f"device name {name!r} cannot be a folder's: use letters, digits, '.', '_' and '-'"
            )


def _write_payload(files: FileSet, contents: Contents) -> None:
    """Tokenizer and libraries."""
    for source in contents.tokenizer:
        files.copy(f"tokenizer/{source.name}", source)
        files.copy(f"devices/{contents.head}/tokenizer/{source.name}", source)
    for name, device in contents.devices.items():
        files.copy(f"devices/{name}/{LIBRARY}", contents.libraries[device.target])
        files.copy(f"devices/{name}/{RUNTIME_LIBRARY}", contents.runtime_libraries[device.target])


def _write_weights(
    files: FileSet, contents: Contents, graph: Graph, pack: PackBlock, progress: Progress | None
) -> None:
    """Pack each block once for each layout; a second device with the same gets the same content."""
    done, total = 0, sum(map(_elements, {p.content: p for _, p in _placed(contents)}.values()))

    def packed(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    made: dict[tuple[object, ...], str] = {}
    for device, placed in _placed(contents):
        name = f"devices/{device}/{placed.file}"
        if placed.content in made:
            files.repeat(name, made[placed.content])
        else:
            files.make(name, _maker(placed, graph, pack, packed))
            made[placed.content] = name


def _maker(
    placed: Placed, graph: Graph, pack: PackBlock, packed: Callable[[int], None]
) -> Callable[[Path], schema.FileEntry]:
    template = graph.templates[placed.block.template]
    return lambda path: pack(path, placed.lowered, template, placed.block, packed, placed.cuts)


def _placed(contents: Contents) -> Iterator[tuple[str, Placed]]:
    return ((device, placed) for device, blocks in contents.placed.items() for placed in blocks)


def _elements(placed: Placed) -> int:
    return sum(prod(weight.shape) for weight in placed.template.weights)


def _write_records(files: FileSet, contents: Contents, described: schema.GraphRecord) -> schema.Manifest:
    """slice.json of every device and manifest.json, bound together by the bundle's identity."""
    slices = {
        name: make_slice(
            name,
            contents.model,
            contents.head,
            contents.devices,
            contents.programs,
            described,
            contents.plan,
            contents.envelope,
            contents.placed[name],
            slice_files(files.entries, name),
            contents.output_blocks,
        )
        for name in contents.devices
    }
    bare = schema.Manifest(
        schema=schema.SCHEMA,
        digest="",
        bundle="",
        model=contents.model,
        head=contents.head,
        plan=contents.plan,
        envelope=contents.envelope,
        programs=contents.programs,
        files=dict(files.entries),
    )
    bundle = identity(bare, slices.values())
    for name, record in slices.items():
        text = schema.encode(msgspec.structs.replace(record, bundle=bundle))
        files.write(f"devices/{name}/slice.json", text)
    _check_disks(files, contents)
    manifest = msgspec.structs.replace(bare, bundle=bundle, files=dict(files.entries))
    (files.root / MANIFEST).write_bytes(schema.encode(manifest))
    return manifest


def _check_disks(files: FileSet, contents: Contents) -> None:
    """The plan left room for libraries whose sizes it could not know."""
    for device, most in contents.disk_bytes.items():
        size = sum(e.size_bytes for name, e in files.entries.items() if name.startswith(f"devices/{device}/"))
        if size > most:
            raise CompileError(
                "B105",
                f"the slice of {device} has {size} bytes, disk_bytes in devices.json is {most}: its libraries are "
                f"larger than was reckoned. Lower disk_bytes by {size - most} to have fewer blocks there, or raise it "
                "by as much",
            )
