"""Blocks come into memory when they are to run and leave it when they are not: whole or not at all, without a trace."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy_model
import pytest
from msgspec.structs import replace
from numpy_model import IDS

from llrun.device.blocks import BlockStore
from llrun.device.headroom import Room
from llrun.device.library import Library
from llrun.device.load import load_device, templates_of
from llrun.device.lookups import by_rows
from llrun.device.reading import BlockFiles
from llrun.device.slice import StoredSlice
from llrun.errors import RunError
from llrun.memory import Array
from llrun.programs.write import idle_program
from llrun.schema import FileEntry, Param, Slice

MIB, PAGE = 1 << 20, 4096
ROWS, WIDTH = 768, PAGE
OWN, SPARE = (3, 4), (1, 2)  # of bert


def rows_of(block: int) -> Array:
    return np.random.default_rng(block).integers(0, 256, (ROWS, WIDTH), np.uint8)


def write(folder: Path, **changes: object) -> StoredSlice:
    """The slice of device bert, 3 MiB a block; of block 0 rows are read by token."""
    record = numpy_model.record("bert", ["head", "anna", "bert"])
    text = json.dumps(
        {"w": {"dtype": "U8", "shape": [ROWS, WIDTH], "data_offsets": [0, ROWS * WIDTH]}}
    ).encode()
    text += b" " * (-(len(text) + 8) % PAGE)
    files = {}
    (folder / "weights").mkdir()
    for block in record.blocks:
        data = len(text).to_bytes(8, "little") + text + rows_of(block.id).tobytes()
        (folder / block.file).write_bytes(data)
        files[block.file] = FileEntry(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    blocks = tuple(
        replace(b, params=(Param(name="w", dtype="uint8", shape=(ROWS, WIDTH), by_token=not b.id),))
        for b in record.blocks
    )
    files |= {name: entry for name, entry in record.files.items() if name.startswith("lib/")}
    return StoredSlice(folder, "bert", None, replace(record, blocks=blocks, files=files, **changes))


def store(stored: StoredSlice, resident: Iterable[int] = OWN, verify: bool = True) -> BlockStore:
    files = BlockFiles(stored, verify)
    read = files.read(list(resident), lambda done, total: None)
    return BlockStore(stored.record, files, lambda array: array, read)


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("RssAnon:")).split()[1]) * 1024


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def mappings() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


def test_what_is_read_is_what_the_files_hold(tmp_path: Path) -> None:
    made, told = store(write(tmp_path)), []
    assert sorted(made.resident) == list(OWN)
    before = made.resident[3]
    made.read([*SPARE, 3], lambda done, total: told.append((done, total)))
    assert sorted(made.resident) == [1, 2, 3, 4]
    assert made.resident[3] is before  # it is not read again
    for block in made.resident:
        np.testing.assert_array_equal(made.resident[block].params[0], rows_of(block))
    assert told[-1][0] == told[-1][1] == 2 * (ROWS * WIDTH + PAGE)


def test_dropped_memory_goes_back_at_once(tmp_path: Path) -> None:
    """Also of one that lies between others, and though somebody refers to its weights."""
    made = store(write(tmp_path))
    made.read([1, 2, 5])
    held, before = made.resident[2].params[0], resident_bytes()
    made.drop([2, 6])
    assert resident_bytes() <= before - ROWS * WIDTH + MIB // 2
    assert not held.any()
    assert sorted(made.resident) == [1, 3, 4, 5]
    for block in made.resident:
        np.testing.assert_array_equal(made.resident[block].params[0], rows_of(block))


# In a process of its own: the heap of one that has run other tests wanders by more than is allowed here.
CYCLES = """
import sys
from pathlib import Path
import test_block_store as tests
tests.many_cycles(Path(sys.argv[1]))
"""


def test_many_cycles_leave_memory_files_and_mappings_as_they_were(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", CYCLES, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def many_cycles(folder: Path) -> None:
    made = store(write(folder), verify=False)

    def cycle() -> None:
        made.read([0, 1, 2])
        made.drop([1])
        made.read([5])
        made.restore()

    for _ in range(3):
        cycle()
    before = resident_bytes(), open_files(), mappings()
    for _ in range(100):
        cycle()
    after = resident_bytes(), open_files(), mappings()
    leaks = [f"{then} before, {now} after" for then, now in zip(before, after, strict=True)]
    if after[0] > before[0] + MIB or after[1] != before[1] or after[2] > before[2] + 20:
        raise AssertionError(f"memory, files, mappings: {leaks}")
    if sorted(made.resident) != list(OWN):
        raise AssertionError(f"blocks {sorted(made.resident)} stayed")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("break_it", "code", "reason"),
    [
        (flip, "R202", "2.safetensors is damaged: its sha256"),
        (Path.unlink, "R201", "2.safetensors"),
        (lambda path: path.write_bytes(b""), "R202", "2.safetensors is damaged: it has 0 bytes"),
    ],
)
def test_a_block_that_cannot_be_read_leaves_all_as_it_was(
    tmp_path: Path, break_it: Callable[[Path], object], code: str, reason: str
) -> None:
    made = store(write(tmp_path))
    break_it(tmp_path / "weights/2.safetensors")

    def fail() -> tuple[int, int]:
        with pytest.raises(RunError, match=reason) as caught:
            made.read([0, 1, 2])
        assert caught.value.code == code
        return resident_bytes(), open_files()

    before = fail()  # what buffers take stays with the allocator
    for _ in range(3):
        after = fail()
        assert after[0] <= before[0] + MIB // 2
        assert after[1] == before[1]
    assert sorted(made.resident) == list(OWN)
    made.read([1])


def test_what_progress_raises_ends_it(tmp_path: Path) -> None:
    made = store(write(tmp_path))

    def stop(done: int, total: int) -> None:
        raise RunError("R207", "another program is to come")

    with pytest.raises(RunError, match="another program"):
        made.read([1], stop)
    assert sorted(made.resident) == list(OWN)


def test_others_run_while_blocks_are_read(tmp_path: Path) -> None:
    made, begun, go_on = store(write(tmp_path)), threading.Event(), threading.Event()

    def slowly(done: int, total: int) -> None:
        begun.set()
        go_on.wait(10)

    thread = threading.Thread(target=made.read, args=(SPARE, slowly))
    thread.start()
    assert begun.wait(10)
    view = made.resident
    assert sorted(view) == list(OWN)
    made.drop([4])
    assert sorted(view) == [3]
    go_on.set()
    thread.join()
    assert sorted(view) == [1, 2, 3]


def test_a_block_that_the_slice_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the slice of device bert does not hold block 7") as caught:
        store(write(tmp_path)).read([1, 7])
    assert caught.value.code == "R207"


# --- memory that is not there ---


def forget(folder: Path) -> None:
    """So that who reads all the same is found out."""
    for file in (folder / "weights").iterdir():
        file.unlink()


def test_nothing_is_read_where_the_machine_has_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = store(write(tmp_path))
    forget(tmp_path)
    monkeypatch.setattr("llrun.device.headroom.memory_left", lambda root: Room(MIB, "this machine"))
    with pytest.raises(
        RunError,
        match=r"not enough memory for block 1 and 1 more of device bert .*: 7 MiB more, this machine leaves 1 MiB",
    ) as caught:
        made.read(SPARE)
    assert caught.value.code == "R208"
    made.check([1], without=[3])  # 3 MiB come, 3 go
    made.read([3])  # nothing is to be read


def envelope_of(record: Slice, memory_bytes: int) -> Slice:
    device = replace(record.envelope.devices["bert"], memory_bytes=memory_bytes)
    return replace(
        record, envelope=replace(record.envelope, devices={**record.envelope.devices, "bert": device})
    )


def test_nothing_is_read_that_the_device_is_not_given_memory_for(tmp_path: Path) -> None:
    """Of the envelope: 1 MiB for the runtime and each block, 16 KiB for a cache, 64 KiB for activations."""
    needed = (1 + 4) * MIB + 4 * (16 << 10) + (64 << 10)
    stored = write(tmp_path)
    enough = replace(stored.record, envelope=envelope_of(stored.record, needed).envelope)
    store(StoredSlice(tmp_path, "bert", None, enough)).read(SPARE)
    made = store(StoredSlice(tmp_path, "bert", None, envelope_of(stored.record, needed - 1)))
    forget(tmp_path)
    with pytest.raises(
        RunError,
        match=r"block 1 and 1 more of device bert beside the 2 that it holds: they take 6 MiB .* gives 5 MiB",
    ):
        made.read(SPARE)
    made.check(SPARE, without=[3])


# --- tables ---


def test_a_table_stays_in_its_file_however_often_it_comes(tmp_path: Path) -> None:
    stored = write(tmp_path)
    files = BlockFiles(stored, verify=True)
    assert (files.by_token, files.memory_bytes(0)) == ({0: IDS}, 0)
    made = BlockStore(stored.record, files, lambda array: array, {})
    calls: list[Array] = []

    def look_up(ids: Array, table: Array) -> Array:
        calls.append(table)
        return table[ids.ravel()].copy()

    library = by_rows(Library({"t0_decode": look_up}, lambda x: x, lambda x: x), made.lookups(files.by_token))
    made.read([0])  # the buffer that it is hashed in stays with the allocator
    made.drop([0])
    before = resident_bytes(), open_files()
    for token in (3, 5, 700):
        made.read([0])
        found = library.functions["t0_decode"](np.array([[token]]), *made.resident[0].params)
        np.testing.assert_array_equal(found[0], rows_of(0)[token])
        if token == 3:  # what a first use alone takes is no table's
            before = resident_bytes(), before[1]
        assert resident_bytes() <= before[0] + MIB // 2
        assert open_files() == before[1] + 1
        made.drop([0])
        assert open_files() == before[1]
    assert len(calls) == 3


# --- the device ---


def test_a_device_is_loaded_with_its_own_blocks_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged spare is found when it is read."""
    stored = write(tmp_path)
    monkeypatch.setattr("llrun.device.load.require", lambda isa, target: None)
    monkeypatch.setattr("llrun.device.load.sealed_copy", lambda stored, name: 0)
    called: list[object] = []

    def load_library(runtime: int, compiled: int, names: object, *rest: object) -> Library:
        called.append(names)
        return numpy_model.library()

    monkeypatch.setattr("llrun.device.load.load_library", load_library)
    flip(tmp_path / "weights/1.safetensors")
    device = load_device(stored, True, lambda done, total: None)
    assert sorted(device.blocks) == list(OWN)
    assert called == [templates_of(stored.record)]
    with pytest.raises(RunError, match=r"1.safetensors is damaged"):
        device.store.read([1])
    device.store.read([2])
    assert sorted(device.blocks) == [2, 3, 4]
    (tmp_path / "weights/6.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match=r"6.safetensors is damaged: it has 0 bytes"):
        load_device(stored, True, lambda done, total: None)


def test_functions_of_all_that_a_device_may_be_told_to_run_are_there() -> None:
    """Not of its own program alone: one on standby has an empty one."""
    record = numpy_model.record("bert", ["head", "anna", "bert"], program=idle_program("bert", 1))
    assert templates_of(record) == {"t0", "t1", "t2", "t3", "positions"}
    few = replace(record, blocks=record.blocks[:1], graph=replace(record.graph, positions=None))
    assert templates_of(few) == {"t0"}
