"""Looks at this machine, and at a device's slice on it."""

from __future__ import annotations

import importlib.metadata
import mmap
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from llrun.device.headroom import memory_left
from llrun.device.processor import NEEDED, features
from llrun.device.slice import StoredSlice, check_file, open_file
from llrun.errors import INTERNAL, RunError
from llrun.faces.doctor.found import Disk, Files, Found, Machine, Memory, Peer, Port
from llrun.faces.processes.listing import processes

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
READ_S, MOST_READ_BYTES, LEAST_READ_BYTES, PIECE_BYTES = 1.0, 256 << 20, 8 << 20, 4 << 20
LOAD_S = 120.0


class LoadFault(msgspec.Struct, frozen=True):
    """What the process says that tried to load a library."""

    code: str
    message: str


def look_at(stored: StoredSlice, verify: bool, port: Port | None, peers: Sequence[Peer]) -> Found:
    """All but ports and peers. `verify`: compare every byte of the files, not their sizes."""
    record, machine = stored.record, machine_here()
    me = record.devices[record.device]
    files = look_at_files(stored, verify)
    capable = machine.features >= NEEDED[me.isa]
    return Found(
        record=record,
        whole=stored.bundle is not None,
        machine=machine,
        memory=Memory(memory_left(), held_bytes(stored)),
        disk=look_at_disk(stored),
        files=files,
        library=library_fault(stored) if capable else None,
        port=port,
        peers=peers,
    )


def machine_here() -> Machine:
    words = None
    with suppress(OSError):
        words = HUGE_PAGES.read_text(encoding="ascii", errors="replace")
    packages: dict[str, str | None] = {}
    for need in needs(head=True):
        name = re.split(r"[^A-Za-z0-9._-]", need, maxsplit=1)[0]
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = None
    return Machine(platform.machine(), features(), len(os.sched_getaffinity(0)), words, packages)


def needs(head: bool) -> list[str]:
    """What llrun's distribution says that it needs, on the `head` text's packages too; nothing where it is not
    installed as one."""
    try:
        listed = importlib.metadata.requires("llrun") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    kept = []
    for need in listed:
        what, _, marker = need.partition(";")
        extra = re.search(r"extra\s*==\s*['\"](\w+)['\"]", marker)
        if extra is None or (head and extra[1] == "head"):
            kept.append(what.strip())
    return kept


def held_bytes(stored: StoredSlice) -> int:
    """The memory of llrun that runs this part on this machine already."""
    with suppress(RunError):
        return sum(
            each.memory_bytes
            for each in processes()
            if (each.record.bundle, each.record.device) == (stored.record.bundle, stored.device)
        )
    return 0


def look_at_files(stored: StoredSlice, verify: bool) -> Files:
    faults: list[RunError] = []
    for name in sorted(stored.record.files):
        try:
            if verify:
                check_file(stored, name)
            else:
                open_file(stored, name).close()
        except RunError as error:
            faults.append(error)
    entries = stored.record.files.values()
    return Files(len(entries), sum(entry.size_bytes for entry in entries), faults, verify)


def look_at_disk(stored: StoredSlice) -> Disk:
    """Reads weights past the page cache for a second at most."""
    free = shutil.disk_usage(stored.folder).free
    streamed = set(stored.record.envelope.devices[stored.device].streamed)
    entries = sorted(stored.record.blocks, key=lambda block: (block.id not in streamed, block.id))
    began, read = time.monotonic(), 0
    with mmap.mmap(-1, PIECE_BYTES) as memory:
        for block in entries:
            try:
                read += _read_past_cache(stored, block.file, memory, began + READ_S, MOST_READ_BYTES - read)
            except OSError:
                return Disk(free, None, "this file system cannot be read past the page cache")
            except RunError:
                continue  # a damaged file is told of by others
    seconds = time.monotonic() - began
    if read < LEAST_READ_BYTES:
        return Disk(free, None, f"its weights, {read / 1e6:.1f} MB, are too few to tell")
    return Disk(free, read / seconds, "")


def _read_past_cache(stored: StoredSlice, name: str, memory: mmap.mmap, until: float, most: int) -> int:
    """Bytes that were read of the file: whole pieces, until the time or the bytes are up."""
    done = 0
    with open_file(stored, name) as file:
        descriptor = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        try:
            while done < most and time.monotonic() < until:
                count = os.preadv(descriptor, [memory], done)
                done += count
                if count < PIECE_BYTES:
                    break
        finally:
            os.close(descriptor)
    return done


def library_fault(stored: StoredSlice) -> RunError | None:
    """Why the library cannot be loaded: tried in a process of its own, which may die of it."""
    command = [sys.executable, "-m", "llrun.faces.doctor.loading", str(stored.folder)]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=LOAD_S, stdin=subprocess.DEVNULL, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return RunError("R205", f"cannot load the library: {error}", INTERNAL)
    if done.returncode == 0:
        return None
    try:
        said = msgspec.json.decode(done.stdout, type=LoadFault)
    except msgspec.MsgspecError:
        how = f"exit code {done.returncode}"
        if done.returncode < 0:
            how = signal.Signals(-done.returncode).name
        return RunError("R205", f"cannot load the library: who tries ends by {how}", INTERNAL)
    return RunError(said.code, said.message, INTERNAL)
