"""Checking a bundle: every file against the manifest, and the slices against each other. Nothing in it is
trusted."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from llcompile.bundle.destination import MANIFEST
from llcompile.bundle.records import identity, is_slice, slice_files
from llcompile.ir.errors import CompileError
from llrun import files, schema
from llrun.device.claims import slice_faults
from llrun.errors import RunError, printable
from llrun.programs.effects import loaded_blocks
from llrun.programs.groups import held_ids


def read_manifest(bundle: Path) -> schema.Manifest:
    """The manifest of `bundle`. Raises CompileError B120 when it is missing or unreadable, B121 when
    damaged, B122 when it is of another version of the schema."""
    try:
        return files.read_manifest(bundle)
    except RunError as error:
        if error.code == "R201":
            raise CompileError("B120", f"{bundle} is not a bundle: {error.message}") from error
        if isinstance(error.__cause__, schema.SchemaError):
            raise CompileError("B122", error.message) from error
        raise CompileError("B121", error.message) from error


def verify(bundle: Path) -> list[str]:
    """Every violation of `bundle`, in words; empty when all is well.

    Found: files that are missing, not in the manifest, of another size or content; symbolic links and names
    that leave the bundle; a damaged manifest or slice.json; slices that contradict the manifest or are of
    another bundle.
    """
    try:
        manifest = read_manifest(bundle)
    except CompileError as error:
        return [error.message]
    present = sorted(_walk(bundle))
    known = {MANIFEST, *manifest.files}
    violations = [f"{name}: not in the manifest" for name in present if name not in known]
    for name, entry in sorted(manifest.files.items()):
        wrong = _check_file(bundle, name, entry)
        violations += [f"{name}: {wrong}"] if wrong else []
    return [printable(violation) for violation in violations or _check_slices(bundle, manifest)]


def _walk(bundle: Path) -> Iterator[str]:
    """Names of all that is not a folder, links to folders included."""
    for folder, folders, others in os.walk(bundle):
        for name in others + [f for f in folders if os.path.islink(os.path.join(folder, f))]:
            yield Path(folder, name).relative_to(bundle).as_posix()


def _check_file(bundle: Path, name: str, entry: schema.FileEntry) -> str | None:
    """What is wrong with one file of the manifest, or None."""
    try:
        with files.plain_file(bundle, name) as file:
            size = files.size_of(file)
            if size != entry.size_bytes:
                return f"{size} bytes, the manifest says {entry.size_bytes}"
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return "missing"
    except files.NotPlain as fault:
        return str(fault)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if digest == entry.sha256 else f"sha256 is {digest}, the manifest says {entry.sha256}"


def _check_slices(bundle: Path, manifest: schema.Manifest) -> list[str]:
    """Slices against the manifest; their bytes are already known to be those of the manifest."""
    slices: dict[str, schema.Slice] = {}
    violations: list[str] = []
    for name in sorted(filter(is_slice, manifest.files)):
        try:
            slices[name.split("/")[1]] = schema.decode(files.read_text(bundle, name), schema.Slice)
        except (RunError, ValueError) as error:
            violations.append(f"{name}: {error}")
    without = sorted(set(manifest.programs) - set(slices))
    violations += [f"{MANIFEST}: device {device} has no slice" for device in without]
    for device, record in slices.items():
        wrongs = _check_slice(device, record, manifest)
        violations += [f"devices/{device}/slice.json: {wrong}" for wrong in wrongs]
    if not violations and identity(manifest, slices.values()) != manifest.bundle:
        violations.append(f"{MANIFEST}: the identity {manifest.bundle} is not that of its content")
    return violations


def _check_slice(device: str, record: schema.Slice, manifest: schema.Manifest) -> Iterator[str]:
    expected: Mapping[str, object] = {
        "bundle": manifest.bundle,
        "device": device,
        "head": manifest.head,
        "model": manifest.model,
        "envelope": manifest.envelope,
        "program": manifest.programs.get(device),
        "files": slice_files(manifest.files, device),
    }
    differing = [key for key, value in expected.items() if getattr(record, key) != value]
    yield from (f"{key} differs from the manifest" for key in differing)
    if (record.stages, record.transmissions) != (manifest.plan.stages, manifest.plan.transmissions):
        yield "stages or transmissions differ from the manifest's plan"
    if set(record.devices) != set(manifest.programs):
        yield "devices differ from the manifest's programs"
    yield from slice_faults(record)
    count = len(record.graph.blocks)
    stages = (*record.stages, *manifest.plan.divisions)
    run = {b for stage in stages if device in stage.devices for b in held_ids(stage, count)}
    held = {block.id for block in record.blocks}
    if held != run | set(manifest.plan.spares.get(device, ())):
        yield "its blocks are not those of the plan's stages, divisions and spares"
    missing = set(loaded_blocks(record.program.instructions)) - held
    if missing:
        yield f"its program loads block {min(missing)}, which it lacks"
