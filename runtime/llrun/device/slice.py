"""Finds, reads and checks a device's slice. Nothing of it is executed or believed before its sha256 has
matched."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from llrun.device.claims import slice_faults
from llrun.device.weights import PIECE, Source, damaged, fill, pieces
from llrun.errors import RunError
from llrun.files import MANIFEST, TEXT_LIMIT, open_inside, read_manifest, read_text, size_of
from llrun.schema import FileEntry, SchemaError, Slice, decode

SLICE = "slice.json"


@dataclass(frozen=True)
class StoredSlice:
    """A device's slice as it lies on disk: `bundle` is None when only a slice's folder was given."""

    folder: Path
    device: str
    bundle: Path | None
    record: Slice


def find(path: Path, device: str | None) -> StoredSlice:
    """The slice of `device` (the head when None) in a bundle, or the one slice at `path`.

    Raises RunError R201 for what is missing, R202 for what is damaged or claims what no slice can, R204 for a
    device that the bundle lacks.
    """
    if os.path.lexists(path / MANIFEST):
        return _in_bundle(path, device)
    if not os.path.lexists(path / SLICE):
        raise RunError(
            "R201", f"{path} is neither a bundle (no {MANIFEST}) nor a device's slice (no {SLICE})"
        )
    record = _decode_slice(path / SLICE, read_text(path, SLICE))
    if device not in (None, record.device):
        raise RunError("R204", f"{path} is the slice of device {record.device}, not of {device}")
    return StoredSlice(path, record.device, None, record)


def _in_bundle(path: Path, device: str | None) -> StoredSlice:
    manifest = read_manifest(path)
    name = device or manifest.head
    if name not in manifest.programs:
        known = ", ".join(sorted(manifest.programs))
        unused = manifest.plan.unused.get(name)
        why = f"the plan leaves it out ({unused})" if unused else f"it has: {known}"
        raise RunError("R204", f"{path} has no part for device {name}: {why}")
    listed = f"devices/{name}/{SLICE}"
    text = read_text(path, listed)
    entry = manifest.files.get(listed)
    if entry is None:
        raise RunError("R202", f"{path / MANIFEST} does not list {listed}")
    digest = hashlib.sha256(text).hexdigest()
    if digest != entry.sha256:
        raise damaged(path / listed, digest, entry.sha256)
    record = _decode_slice(path / listed, text)
    if (record.device, record.bundle) != (name, manifest.bundle):
        raise RunError("R202", f"{path / listed} is of device {record.device} of bundle {record.bundle[:12]}")
    return StoredSlice(path / "devices" / name, name, path, record)


def _decode_slice(file: Path, text: bytes) -> Slice:
    try:
        record = decode(text, Slice)
    except SchemaError as error:
        raise RunError("R202", f"{file}: {error}") from error
    except ValueError as error:
        raise RunError("R202", f"{file} is damaged: {error}. Copy the slice again.") from error
    fault = next(slice_faults(record), None)
    if fault:
        raise RunError("R202", f"{file}: {fault}. Build the bundle again.")
    return record


def entry_of(stored: StoredSlice, name: str) -> FileEntry:
    entry = stored.record.files.get(name)
    if entry is None:
        raise RunError("R202", f"{stored.folder / SLICE} does not list {name}")
    return entry


def open_file(stored: StoredSlice, name: str) -> FileIO:
    """The file `name` of the slice, of the size that the slice says. Raises RunError R201, R202."""
    entry = entry_of(stored, name)
    file = open_inside(stored.folder, name)
    if size_of(file) != entry.size_bytes:
        size = size_of(file)
        file.close()
        raise RunError(
            "R202",
            f"{stored.folder / name} is damaged: it has {size} bytes, the bundle says {entry.size_bytes}. "
            "Copy the slice again.",
        )
    return file


def check_file(stored: StoredSlice, name: str, take: Callable[[memoryview], object] = len) -> None:
    """Read the file `name` of the slice once and compare its sha256; `take` is given what is read, piece by piece,
    and must not use it before this returns. Raises RunError R201, R202."""
    path, entry = stored.folder / name, entry_of(stored, name)
    digest = hashlib.sha256()
    with open_file(stored, name) as file:
        memory = memoryview(bytearray(min(PIECE, entry.size_bytes)))
        for start, stop in pieces(entry.size_bytes):
            piece = memory[: stop - start]
            fill(file, piece, start, Source(path, entry, ()))
            digest.update(piece)
            take(piece)
    if digest.hexdigest() != entry.sha256:
        raise damaged(path, digest.hexdigest(), entry.sha256)


def verified_bytes(stored: StoredSlice, name: str) -> bytes:
    """A small file of the slice (tokenizer), its size and sha256 checked: what was hashed is what is given. Raises
    RunError R201, R202."""
    if entry_of(stored, name).size_bytes > TEXT_LIMIT:
        raise RunError("R202", f"{stored.folder / name} has more than {TEXT_LIMIT} bytes")
    text = bytearray()
    check_file(stored, name, text.extend)
    return bytes(text)
