"""Target files: a device type's processor and figures, each figure with its source."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llcompile.cluster.strict_json import Faults, items, positive, positive_int, read_json, record, text
from llcompile.ir.cluster import Processor
from llrun.schema import Isa

# Unit of each figure, and whether it is a whole number.
FIGURES: Mapping[str, tuple[str, bool]] = {
    "memory_bytes": ("bytes", True),
    "threads": ("threads", True),
    "compute_flops": ("operations per second", False),
    "memory_bytes_per_s": ("bytes per second", False),
    "disk_bytes_per_s": ("bytes per second", False),
    "runtime_bytes": ("bytes", True),
}
MAX_THREADS = 4096
_CODE = "C103"


@dataclass(frozen=True)
class Target:
    """`figures` holds what the file gives: a figure that nobody measured is absent, never 0."""

    name: str
    processor: Processor
    figures: Mapping[str, float]


def targets_dir() -> Path:
    """Folder of the target files: $LLC_TARGETS, else targets/ of the checkout, else where they are installed."""
    override = os.environ.get("LLC_TARGETS")
    if override:
        return Path(override)
    checkout = Path(__file__).resolve().parents[2] / "targets"
    return checkout if checkout.is_dir() else Path(sys.prefix, "share", "llcompile", "targets")


def target_names(folder: Path) -> tuple[str, ...]:
    """Names of the targets in `folder`, sorted."""
    return tuple(sorted(path.stem for path in folder.glob("*.json")))


def load_target(faults: Faults, name: str, folder: Path) -> Target | None:
    """The target `name` of `folder`; what is wrong in its file is noted, with the file in the place.

    Raises CompileError C103 when the file cannot be read or is not JSON.
    """
    path = folder / f"{name}.json"
    known = ("name", "description", "processor", *FIGURES)
    own = Faults()
    fields = record(own, read_json(path, "target file", _CODE), "", known)
    target = _target(own, fields, name) if fields is not None else None
    for fault in own.texts:
        faults.add(f"target file {path.name}", fault)
    return target if not own.texts else None


def _target(faults: Faults, fields: Mapping[str, Any], name: str) -> Target | None:
    if fields.get("name") != name:
        faults.add("name", f'must be "{name}", as the file is called')
    processor = _processor(faults, fields.get("processor"))
    figures = {key: _figure(faults, fields[key], key) for key in FIGURES if key in fields}
    if processor is None:
        return None
    return Target(name, processor, {key: value for key, value in figures.items() if value is not None})


def _processor(faults: Faults, value: Any) -> Processor | None:
    fields = record(faults, value, "processor", ("mtriple", "mcpu", "mattr", "isa"))
    if fields is None:
        return None
    mtriple = text(faults, fields.get("mtriple"), "processor.mtriple")
    mcpu = text(faults, fields.get("mcpu"), "processor.mcpu")
    isa = text(faults, fields.get("isa"), "processor.isa")
    features = items(faults, fields.get("mattr", []), "processor.mattr")
    mattr = [text(faults, entry, f"processor.mattr[{i}]") for i, entry in enumerate(features)]
    known = list(Isa)
    if isa is not None and isa not in known:
        faults.add("processor.isa", f'unknown instruction set "{isa}". Known: {", ".join(known)}')
    if mtriple is None or mcpu is None or isa not in known:
        return None
    return Processor(mtriple, mcpu, tuple(entry for entry in mattr if entry is not None), Isa(isa))


def _figure(faults: Faults, value: Any, key: str) -> float | None:
    fields = record(faults, value, key, ("value", "source"))
    if fields is None:
        return None
    text(faults, fields.get("source"), f"{key}.source")
    return figure_value(faults, fields.get("value"), f"{key}.value", key)


def figure_value(faults: Faults, value: Any, place: str, key: str) -> float | None:
    """`value` checked as the figure `key` of FIGURES."""
    unit, whole = FIGURES[key]
    if key == "threads":
        return positive_int(faults, value, place, unit, MAX_THREADS)
    return positive_int(faults, value, place, unit) if whole else positive(faults, value, place, unit)
