"""What the doctor reads of a machine: files, disks, what runs already."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy_model
import pytest

from llrun.device.slice import StoredSlice
from llrun.faces.doctor import look
from llrun.faces.processes.folder import Record, Role, namespace, run_folder, started_ticks, write
from llrun.schema import FileEntry

MIB = 1 << 20


def stored(folder: Path, size_bytes: int) -> StoredSlice:
    """A slice whose blocks are files of this size."""
    record = numpy_model.record("head", ["head"])
    entries = {name: FileEntry(size_bytes=size_bytes, sha256="") for name in record.files}
    for name in entries:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(size_bytes))
    return StoredSlice(folder, "head", None, numpy_model.record("head", ["head"], files=entries))


def reads_past_the_cache(folder: Path) -> bool:
    probe = folder / "probe"
    probe.write_bytes(bytes(4096))
    try:
        os.close(os.open(probe, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    finally:
        probe.unlink()
    return True


def test_a_disk_is_read_past_the_cache(tmp_path):
    part = stored(tmp_path, 2 * MIB + 100)
    if not reads_past_the_cache(tmp_path):
        pytest.skip("the file system of temporary files has no direct reads")
    found = look.look_at_disk(part)
    assert found.read_bytes_per_s is not None
    assert found.read_bytes_per_s > 0
    assert found.free_bytes > 0


def test_so_much_is_read_and_no_more(tmp_path, monkeypatch):
    part = stored(tmp_path, 8 * MIB)
    if not reads_past_the_cache(tmp_path):
        pytest.skip("the file system of temporary files has no direct reads")
    read = []
    preadv = os.preadv
    monkeypatch.setattr(look.os, "preadv", lambda *words: read.append(preadv(*words)) or read[-1])
    monkeypatch.setattr(look, "MOST_READ_BYTES", 12 * MIB)
    monkeypatch.setattr(look, "READ_S", 60.0)
    assert look.look_at_disk(part).read_bytes_per_s is not None
    assert sum(read) == 12 * MIB
    monkeypatch.setattr(look, "READ_S", 0.0)
    read.clear()
    assert "too few to tell" in look.look_at_disk(part).unread
    assert sum(read) == 0


def test_little_is_no_rate(tmp_path):
    found = look.look_at_disk(stored(tmp_path, MIB // 2))
    assert found.read_bytes_per_s is None
    assert "too few to tell" in found.unread or "cannot be read past" in found.unread


def test_a_file_system_without_direct_reads_says_so(tmp_path, monkeypatch):
    part, opened = stored(tmp_path, MIB), os.open

    def refusing(path, flags, *rest, **words):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return opened(path, flags, *rest, **words)

    monkeypatch.setattr(look.os, "open", refusing)
    assert look.look_at_disk(part).unread == "this file system cannot be read past the page cache"


def test_a_file_that_is_missing_is_for_another_check(tmp_path):
    part = stored(tmp_path, MIB)
    for path in (tmp_path / "weights").iterdir():
        path.unlink()
    assert look.look_at_disk(part).read_bytes_per_s is None
    assert len(look.look_at_files(part, verify=False).faults) == numpy_model.BLOCKS


def test_what_runs_this_part_already_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    part = stored(tmp_path / "slice", 16)
    assert look.held_bytes(part) == 0
    pid = os.getpid()
    record = Record(
        pid=pid, started_ticks=started_ticks(pid) or 0, namespace=namespace(), role=Role.HEAD,
        bundle=part.record.bundle, path="", model="m", device="head",
    )  # fmt: skip
    write(run_folder(), record)
    assert look.held_bytes(part) > MIB
    (run_folder()).chmod(0o777)  # what is there is not believed, and keeps nobody from looking
    assert look.held_bytes(part) == 0


def test_a_machine_says_what_it_is():
    machine = look.machine_here()
    assert machine.threads == len(os.sched_getaffinity(0))
    assert {"numpy", "click", "msgspec", "apache-tvm-ffi"} <= machine.packages.keys()
    assert all(machine.packages.values())


def test_a_library_that_kills_who_loads_it_is_told_as_such(tmp_path, monkeypatch):
    part = stored(tmp_path, 16)
    monkeypatch.setattr(look.sys, "executable", "/bin/false")
    assert "exit code 1" in look.library_fault(part).message
    script = tmp_path / "dies"
    script.write_text("#!/bin/sh\nkill -ILL $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(look.sys, "executable", str(script))
    assert "ends by SIGILL" in look.library_fault(part).message
    monkeypatch.setattr(look.sys, "executable", str(tmp_path / "none"))
    assert "No such file" in look.library_fault(part).message
