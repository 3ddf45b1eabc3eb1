"""Finds, reads and checks a device's slice. Nothing of it is executed or believed before its sha256 has
matched."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from llrun.device.weights import damaged
from llrun.errors import RunError
from llrun.schema import FileEntry, Manifest, Slice, decode

TEXT_LIMIT = 64 << 20


@dataclass(frozen=True)
class Place:
    """Where a device's part lies: `bundle` is None when only a slice's folder was given."""

    folder: Path
    device: str
    bundle: Path | None
    record: Slice


def find(path: Path, device: str | None) -> Place:
    """The slice of `device` (the head when None) in a bundle, or the one slice at `path`.

    Raises RunError R201 for what is missing, R202 for what is damaged, R204 for a device that the bundle
    lacks.
    """
    if (path / "manifest.json").is_file():
        return _in_bundle(path, device)
    if not (path / "slice.json").is_file():
        raise RunError(
            "R201", f"{path} is neither a bundle (no manifest.json) nor a device's slice (no slice.json)"
        )
    record = _decode_slice(path / "slice.json", _read_text(path / "slice.json"))
    if device not in (None, record.device):
        raise RunError("R204", f"{path} is the slice of device {record.device}, not of {device}")
    return Place(path, record.device, None, record)


def read_manifest(path: Path) -> Manifest:
    file = path / "manifest.json"
    try:
        return decode(_read_text(file), Manifest)
    except ValueError as error:
        raise RunError("R202", f"{file} is damaged: {error}. Copy the bundle again.") from error


def _in_bundle(path: Path, device: str | None) -> Place:
    manifest = read_manifest(path)
    name = device or manifest.head
    if name not in manifest.programs:
        known = ", ".join(sorted(manifest.programs))
        unused = manifest.plan.unused.get(name)
        why = f"the plan leaves it out ({unused})" if unused else f"it has: {known}"
        raise RunError("R204", f"{path} has no part for device {name}: {why}")
    folder = path / "devices" / name
    file = folder / "slice.json"
    text = _read_text(file)
    entry = manifest.files.get(f"devices/{name}/slice.json")
    if entry is None:
        raise RunError("R202", f"{path / 'manifest.json'} does not list devices/{name}/slice.json")
    digest = hashlib.sha256(text).hexdigest()
    if digest != entry.sha256:
        raise damaged(file, digest, entry.sha256)
    record = _decode_slice(file, text)
    if (record.device, record.bundle) != (name, manifest.bundle):
        raise RunError("R202", f"{file} is of device {record.device} of bundle {record.bundle[:12]}")
    return Place(folder, name, path, record)


def _decode_slice(file: Path, text: bytes) -> Slice:
    try:
        record = decode(text, Slice)
    except ValueError as error:
        raise RunError("R202", f"{file} is damaged: {error}. Copy the slice again.") from error
    for name in record.files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise RunError("R202", f"{file} names a file outside its folder: {name}")
    for name in (record.device, record.head):
        if name not in record.devices:
            raise RunError("R202", f"{file} does not describe device {name}")
    return record


def entry_of(place: Place, name: str) -> FileEntry:
    entry = place.record.files.get(name)
    if entry is None:
        raise RunError("R202", f"{place.folder / 'slice.json'} does not list {name}")
    return entry


def verified_file(place: Place, name: str) -> Path:
    """The path of a small file of the slice (library, tokenizer), its size and sha256 checked."""
    entry = entry_of(place, name)
    path = place.folder / name
    try:
        size = path.stat().st_size
        if size != entry.size_bytes:
            raise RunError(
                "R202", f"{path} is damaged: it has {size} bytes, the bundle says {entry.size_bytes}"
            )
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RunError("R201", f"cannot read {path}: {error}. Copy the slice again.") from error
    if digest != entry.sha256:
        raise damaged(path, digest, entry.sha256)
    return path


def _read_text(path: Path) -> bytes:
    try:
        if path.stat().st_size > TEXT_LIMIT:
            raise RunError("R202", f"{path} has {path.stat().st_size} bytes, more than {TEXT_LIMIT}")
        return path.read_bytes()
    except OSError as error:
        raise RunError("R201", f"cannot read {path}: {error}") from error
