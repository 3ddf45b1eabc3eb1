"""Whether the memory that the plan has a device take is there: asked before weights are read, not by being killed."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from llrun.errors import INTERNAL, RunError
from llrun.programs.ring import weights_bytes
from llrun.schema import DeviceInfo, EnvelopeDevice

MIB = 1 << 20
# What a group counts of a process beside its pages, and no plan does: its kernel memory (2 MiB), pages charged ahead.
# A limit of exactly what the plan says must do.
SLACK_BYTES = 4 * MIB
NO_LIMIT = 1 << 62  # control groups of version 1 say "none" by a number near 2^63
ROOT = Path("/")


@dataclass(frozen=True)
class Room:
    """`free_bytes`: what processes may still take; `bound`: whose limit that is, in words."""

    free_bytes: int
    bound: str


@dataclass(frozen=True)
class Files:
    """What a control group's files are called: its limits, what it uses, and in `memory.stat` what the system takes
    back before it refuses memory: files' pages."""

    limits: tuple[str, ...]
    usage: str
    reclaimable: tuple[tuple[str, ...], ...]


# Version 1 counts for the group alone and, with `total_`, for those in it as well: the latter are what its limit is of.
V1 = Files(
    ("memory.limit_in_bytes",),
    "memory.usage_in_bytes",
    (("total_inactive_file", "inactive_file"), ("total_active_file", "active_file")),
)
V2 = Files(
    ("memory.max", "memory.high"),
    "memory.current",
    (("inactive_file",), ("active_file",), ("slab_reclaimable",)),
)


def check_memory(device: DeviceInfo, root: Path = ROOT) -> None:
    """Raises RunError R208 when the plan has `device` take more than this machine leaves it."""
    own = _status(root)
    room = memory_left(root)
    needed = device.peak_bytes - own.get("RssAnon", 0)
    if room and needed > room.free_bytes + SLACK_BYTES:
        raise _short(f"device {device.name}", "its plan has it", needed, room)


def check_together(devices: dict[str, DeviceInfo], root: Path = ROOT) -> None:
    """`check_memory` for processes of one machine, which share the pages of the same libraries."""
    own = _status(root)
    shared = own.get("RssFile", 0) * (len(devices) - 1)
    needed = sum(device.peak_bytes for device in devices.values()) - own.get("RssAnon", 0) - shared
    room = memory_left(root)
    if room and needed > room.free_bytes + SLACK_BYTES * len(devices):
        raise _short(f"the {len(devices)} devices of this bundle", "the plan has them", needed, room)


def check_reading(name: str, blocks: Collection[int], needed: int, root: Path = ROOT) -> None:
    """Raises RunError R208 when reading `blocks` of device `name` takes more memory than this machine leaves it.
    `needed`: bytes more than there are in use."""
    room = memory_left(root)
    if blocks and room and needed > room.free_bytes + SLACK_BYTES:
        raise RunError(
            "R208",
            f"not enough memory for {_listed(blocks)} of device {name} beside what it holds: {-(-needed // MIB)} MiB"
            f" more, {room.bound} leaves {room.free_bytes // MIB} MiB. End other programs or raise the limit",
            INTERNAL,
        )


def check_change(name: str, device: EnvelopeDevice, stay: Collection[int], blocks: Collection[int]) -> None:
    """Raises RunError R208 when device `name`, which has the blocks `stay` in memory, takes more with `blocks` than
    devices.json gives it: the runtime, weights or the ring that they stream through, and for one sequence the caches
    and the largest block's activations, as in a plan."""
    held = [block for block in device.blocks if block.id in blocks or block.id in stay]
    needed = (
        device.runtime_bytes
        + weights_bytes(device, [block.id for block in held])
        + sum(block.cache_bytes for block in held)
        + max((block.activation_bytes for block in held), default=0)
    )
    if blocks and needed > device.memory_bytes:
        raise RunError(
            "R208",
            f"not enough memory for {_listed(blocks)} of device {name} beside the {len(stay)} that it holds: they take"
            f" {-(-needed // MIB)} MiB together, its memory_bytes gives {device.memory_bytes // MIB} MiB. Give it"
            " more in devices.json, or build again with a smaller --context or --quant",
            INTERNAL,
        )


def _listed(blocks: Collection[int]) -> str:
    first, *others = sorted(blocks)
    return f"block {first}" + (f" and {len(others)} more" if others else "")


def _short(who: str, whose: str, needed: int, room: Room) -> RunError:
    return RunError(
        "R208",
        f"not enough memory for {who}: {whose} take up to {-(-needed // MIB)} MiB more, {room.bound} leaves "
        f"{room.free_bytes // MIB} MiB. End other programs or raise the limit, or build again with a smaller "
        "memory_bytes in devices.json, --context or --quant",
        INTERNAL,
    )


def memory_left(root: Path = ROOT) -> Room | None:
    """The least that the system and every control group around this process leave; None where nothing says.

    `root`: the folder that holds `proc`. Numbers that cannot be read as such bound nothing.
    """
    rooms = [*_system(root), *_groups(root)]
    return min(rooms, key=lambda room: room.free_bytes, default=None)


def _system(root: Path) -> Iterator[Room]:
    lines = _numbers(_text(root / "proc/meminfo"), r"(\w+):\s+(\d+) kB")
    free = lines.get("MemAvailable", sum(lines.get(key, 0) for key in ("MemFree", "Buffers", "Cached")))
    if lines:
        yield Room(free * 1024, "this machine")


def _groups(root: Path) -> Iterator[Room]:
    """What the groups of this process and all groups above them leave."""
    mounts = list(_mounts(root))
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        files = (
            V2 if number == "0" and not controllers else V1 if "memory" in controllers.split(",") else None
        )
        for mount, top, kind in mounts:
            if kind is files:
                yield from _group(root / mount.relative_to("/"), PurePosixPath(group), top, kind)


def _group(mount: Path, group: PurePosixPath, top: PurePosixPath, files: Files) -> Iterator[Room]:
    """`group` and its ancestors, as far as `mount` shows them, whose own folder is group `top`."""
    # In a container the path is often the host's, of which nothing is to be seen but the mount: its own group.
    inside = (
        group.relative_to(top) if group.is_relative_to(top) and ".." not in group.parts else PurePosixPath()
    )
    for folder in (inside, *inside.parents):
        usage = _number(_text(mount / folder / files.usage))
        limits = [_number(_text(mount / folder / name)) for name in files.limits]
        limit = min((limit for limit in limits if limit is not None and limit < NO_LIMIT), default=None)
        if usage is None or limit is None:
            continue
        counts = _numbers(_text(mount / folder / "memory.stat"), r"(\w+) (\d+)")
        reclaimable = sum(
            next((counts[name] for name in names if name in counts), 0) for names in files.reclaimable
        )
        free = max(0, limit - max(0, usage - reclaimable))
        yield Room(
            free, f"the control group /{top.joinpath(folder).as_posix().lstrip('/')} of {limit // MIB} MiB"
        )


def _mounts(root: Path) -> Iterator[tuple[Path, PurePosixPath, Files]]:
    """Where control groups are mounted: the folder, the group that it shows, and its files' names (proc(5))."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, types = before.split(), after.split()
        if len(fields) < 5 or len(types) < 3:
            continue
        kind = V2 if types[0] == "cgroup2" else None
        if types[0] == "cgroup" and "memory" in types[2].split(","):
            kind = V1
        if kind and fields[4].startswith("/"):
            yield Path(_unescaped(fields[4])), PurePosixPath(_unescaped(fields[3])), kind


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), text)


def _status(root: Path) -> dict[str, int]:
    """What this process takes, in bytes, by the names of proc(5)."""
    lines = _numbers(_text(root / "proc/self/status"), r"(\w+):\s+(\d+) kB")
    return {name: kib * 1024 for name, kib in lines.items()}


def _text(path: Path) -> str:
    """A file of the system; nothing where there is none or it cannot be read."""
    with suppress(OSError, ValueError), path.open(encoding="utf-8", errors="replace") as file:
        return file.read(1 << 20)
    return ""


def _numbers(text: str, line: str) -> dict[str, int]:
    matches = (re.fullmatch(line, each.strip(), re.ASCII) for each in text.splitlines())
    return {match.group(1): int(match.group(2)[:30]) for match in matches if match}


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 30 else None
