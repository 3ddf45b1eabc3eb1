"""Slices and weights on disk: read as they were written, refused by name when a byte differs."""

from __future__ import annotations

import hashlib
import json
import mmap
from pathlib import Path

import numpy as np
import numpy_model
import pytest
from mappings import resident_bytes
from msgspec.structs import replace

from llrun import schema
from llrun.device.slice import StoredSlice, find, open_file, verified_bytes
from llrun.device.table import Table
from llrun.device.weights import Source, read_weights
from llrun.errors import RunError
from llrun.memory import ALIGNMENT, Slots, aligned_copy, empty, is_aligned, peak_bytes, reserve, reserve_slots
from llrun.schema import FileEntry, Param

ARRAYS = {
    "w.data": np.arange(64 * 48, dtype=np.uint8).reshape(4, 12, 64),
    "w.scales": np.linspace(0, 1, 64, dtype=np.float16).reshape(2, 32),
    "b.data": np.arange(16, dtype=np.float32),
}
PARAMS = [Param(name=name, dtype=array.dtype.name, shape=array.shape) for name, array in ARRAYS.items()]
NAMES = {"uint8": "U8", "float16": "F16", "float32": "F32"}


def entry(path: Path) -> FileEntry:
    data = path.read_bytes()
    return FileEntry(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def write_weights(path: Path, align: int = 64, **changes: object) -> FileEntry:
    header: dict[str, object] = {"__metadata__": {"made": "here"}}
    offset, pieces = 0, []
    for name, array in ARRAYS.items():
        pad = -offset % align
        pieces.append(b"\0" * pad + array.tobytes())
        offset += pad
        offsets = [offset, offset + array.nbytes]
        header[name] = {"dtype": NAMES[array.dtype.name], "shape": array.shape, "data_offsets": offsets}
        offset += array.nbytes
    text = json.dumps(header | changes).encode()
    text += b" " * (-(len(text) + 8) % 64)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(pieces))
    return entry(path)


def read(
    path: Path, described: FileEntry, by_row: bool = False, verify: bool = True, params=PARAMS, count=int
):
    """As a device reads a block: all at once, or `by_row` with the first array left in the file, of which every row
    is then asked for."""
    stored = StoredSlice(
        path.parent, "a", None, numpy_model.record("head", ["head"], files={path.name: described})
    )
    file = open_file(stored, path.name)
    if not by_row:
        source = Source(path, described, tuple(params))
        return read_weights(file, source, reserve(described.size_bytes, huge=True), verify, count)
    marked = (replace(params[0], by_token=True), *params[1:])
    table = Table(file, Source(path, described, marked), verify, count)
    table.hold(range(len(table.arrays[0])))
    return table.arrays


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("verify", [False, True])
def test_weights_are_read_aligned_and_equal(tmp_path, by_row, verify):
    described = write_weights(tmp_path / "w")
    arrays = read(tmp_path / "w", described, by_row, verify)
    for array, expected in zip(arrays, ARRAYS.values(), strict=True):
        assert is_aligned(array)
        np.testing.assert_array_equal(array, expected)


def test_progress_counts_every_byte(tmp_path):
    described = write_weights(tmp_path / "w")
    for by_row in (False, True):
        for verify in (False, True):
            counts: list[int] = []
            read(tmp_path / "w", described, by_row, verify, count=counts.append)
            assert sum(counts) == described.size_bytes


@pytest.mark.parametrize("by_row", [False, True])
def test_any_flipped_byte_is_found(tmp_path, by_row):
    path = tmp_path / "w"
    described = write_weights(path)
    good = path.read_bytes()
    for position in [0, 3, 9, 100, len(good) // 2, len(good) - 1]:
        data = bytearray(good)
        data[position] ^= 0x10
        path.write_bytes(data)
        with pytest.raises(RunError, match="damaged") as caught:
            read(path, described, by_row)
        assert (caught.value.code, caught.value.exit_code) == ("R202", 2)


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("change", [-1, 1])
def test_another_size_is_found_even_without_hashing(tmp_path, by_row, change):
    path = tmp_path / "w"
    described = write_weights(path)
    data = path.read_bytes()
    path.write_bytes(data[:-1] if change < 0 else data + b"x")
    with pytest.raises(RunError, match=f"it has {len(data) + change} bytes, the bundle says {len(data)}"):
        read(path, described, by_row, verify=False)


def test_missing_file(tmp_path):
    with pytest.raises(RunError, match=r"cannot read .*No such file") as caught:
        read(tmp_path / "none", FileEntry(size_bytes=1, sha256=""))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"b.data": {"dtype": "F32", "shape": [17], "data_offsets": [0, 68]}},
            r"is F32 \[17\], the slice says",
        ),
        ({"b.data": {"dtype": "F16", "shape": [16], "data_offsets": [0, 32]}}, "is F16"),
        ({"b.data": {"dtype": "F32", "shape": [16], "data_offsets": [0, 1 << 40]}}, "lies at"),
        ({"b.data": {"dtype": "F32", "shape": [16], "data_offsets": [-64, 0]}}, "lies at"),
        ({"b.data": {"dtype": "F32", "shape": [16], "data_offsets": [64, 0]}}, "lies at"),
        ({"b.data": {"dtype": "F32", "shape": [16], "data_offsets": [4, 68]}}, "not aligned to 64 bytes"),
        ({"b.data": 5}, "not a safetensors file"),
    ],
)
def test_headers_that_do_not_fit_the_slice(tmp_path, changes, reason):
    described = write_weights(tmp_path / "w", **changes)
    with pytest.raises(RunError, match=reason):
        read(tmp_path / "w", described)


@pytest.mark.parametrize("data", [b"", b"\1\2\3", b"\xff" * 64, (8).to_bytes(8, "little") + b"\xff" * 8])
def test_what_is_no_safetensors_file(tmp_path, data):
    path = tmp_path / "w"
    path.write_bytes(data)
    for by_row in (False, True):
        with pytest.raises(RunError) as caught:
            read(path, entry(path), by_row)
        assert caught.value.exit_code == 2


def test_missing_entry_is_named(tmp_path):
    described = write_weights(tmp_path / "w")
    with pytest.raises(RunError, match="has no entry z"):
        read(tmp_path / "w", described, params=[Param(name="z", dtype="uint8", shape=(1,))])


# --- memory ---


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (1, 7, 64)])
@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8", "float16"])
def test_arrays_are_aligned(shape, dtype):
    for _ in range(5):
        assert is_aligned(empty(shape, dtype))
    first, second = Slots([(shape, dtype), (shape, "float32")], 3).arrays
    assert first.shape == second.shape == (3, *shape)
    assert is_aligned(first)
    assert is_aligned(second)
    assert not second.any()


def test_misalignment_is_seen():
    assert not is_aligned(empty((256,), "uint8")[4:])
    assert is_aligned(aligned_copy(empty((256,), "uint8")[4:]))
    assert ALIGNMENT == 64


def test_reserved_memory_is_committed_only_when_touched():
    before = peak_bytes()
    region = reserve(1 << 30, huge=False)
    region[:4096] = 1
    assert peak_bytes() - before < 64 << 20
    assert reserve(5 << 20, huge=True).ctypes.data % (2 << 20) == 0


@pytest.mark.parametrize(
    "width", [1 << 20, (1 << 20) + 40]
)  # whole pages, and slots that share their first and last
def test_a_slot_is_given_back_and_its_neighbours_stay(width):
    slots = Slots([((width,), "uint8"), ((3, 5), "float16")], 4)
    before = resident_bytes(slots.arrays[0])
    for array in slots.arrays:
        array[...] = np.arange(1, 5).reshape(4, *[1] * (array.ndim - 1))
    taken = resident_bytes(slots.arrays[0])
    slots.discard(1)
    assert taken - before > 3 << 20
    assert taken - resident_bytes(slots.arrays[0]) > (1 << 20) - 2 * mmap.PAGESIZE
    for array in slots.arrays:
        for slot in (0, 2, 3):
            assert (array[slot] == slot + 1).all()
    assert not slots.arrays[0][1, 4096:-4096].any()


def test_fewer_slots_where_addresses_are_short():
    huge = {0: [((1 << 42,), "uint8")]}  # 64 of them are more than any processor's address space
    found = reserve_slots(huge, 64)[0]
    assert 1 <= found.count < 64
    assert found.arrays[0].shape == (found.count, 1 << 42)
    with pytest.raises(OSError, match=r"Cannot allocate|too large"):
        reserve_slots({0: [((1 << 50,), "uint8")]}, 64)


# --- slices ---


def write_slice(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lib").mkdir(exist_ok=True)
    (folder / "lib/a.so").write_bytes(b"library")
    record = numpy_model.record("anna", ["head", "anna"])
    files = {**record.files, "lib/a.so": entry(folder / "lib/a.so")}
    record = replace(record, **{"files": files, **changes})
    (folder / "slice.json").write_bytes(schema.encode(record))
    return folder


def test_a_slice_is_found_in_its_own_folder(tmp_path):
    stored = find(write_slice(tmp_path), None)
    assert (stored.device, stored.bundle) == ("anna", None)
    assert find(tmp_path, "anna").device == "anna"
    assert verified_bytes(stored, "lib/a.so") == b"library"


def test_the_slice_of_another_device(tmp_path):
    with pytest.raises(RunError, match="is the slice of device anna, not of head"):
        find(write_slice(tmp_path), "head")


def test_every_flipped_byte_of_slice_json_is_found(tmp_path):
    path = write_slice(tmp_path) / "slice.json"
    good = path.read_bytes()
    for position in range(0, len(good), 97):
        data = bytearray(good)
        data[position] ^= 0x01
        path.write_bytes(data)
        with pytest.raises(RunError, match="damaged") as caught:
            find(tmp_path, None)
        assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "lib/../../x"])
def test_files_outside_the_slice_are_refused(tmp_path, name):
    write_slice(tmp_path, files={name: FileEntry(size_bytes=1, sha256="")})
    with pytest.raises(RunError, match="outside its folder"):
        find(tmp_path, None)


@pytest.mark.parametrize("data", [b"Library", b"librar", b"library!"])
def test_damaged_files_are_found(tmp_path, data):
    stored = find(write_slice(tmp_path), None)
    (tmp_path / "lib/a.so").write_bytes(data)
    with pytest.raises(RunError, match="damaged") as caught:
        verified_bytes(stored, "lib/a.so")
    assert caught.value.code == "R202"


def test_missing_and_unlisted_files(tmp_path):
    stored = find(write_slice(tmp_path), None)
    (tmp_path / "lib/a.so").unlink()
    with pytest.raises(RunError, match="cannot read"):
        verified_bytes(stored, "lib/a.so")
    with pytest.raises(RunError, match=r"does not list lib/b\.so"):
        verified_bytes(stored, "lib/b.so")


def test_neither_bundle_nor_slice(tmp_path):
    with pytest.raises(RunError, match="neither a bundle"):
        find(tmp_path, None)
    with pytest.raises(RunError, match="neither a bundle"):
        find(tmp_path / "none", None)
