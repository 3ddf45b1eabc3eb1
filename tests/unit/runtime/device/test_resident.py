"""What stays resident: weights without waste between blocks, and nothing of a table of which rows are read."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from mappings import resident_bytes

from llrun.device.library import Library
from llrun.device.lookups import Lookup, by_rows
from llrun.device.table import Table
from llrun.device.weights import Source
from llrun.errors import RunError
from llrun.files import open_inside
from llrun.memory import Array, side_by_side
from llrun.schema import FileEntry, Param

MIB, PAGE = 1 << 20, mmap.PAGESIZE
ROWS = 1024


def row_bytes(number: int, width: int = PAGE) -> bytes:
    return np.random.default_rng(number).bytes(width)


def write(path: Path, width: int = PAGE) -> Source:
    """A safetensors file: `rows` uint8 (ROWS, width), each drawn from its number, then `bias` float32 (16,)."""
    size = ROWS * width
    text = json.dumps(
        {
            "rows": {"dtype": "U8", "shape": [ROWS, width], "data_offsets": [0, size]},
            "bias": {"dtype": "F32", "shape": [16], "data_offsets": [size, size + 64]},
        }
    ).encode()
    text += b" " * (-(len(text) + 8) % PAGE)
    data = b"".join(row_bytes(i, width) for i in range(ROWS)) + np.arange(16, dtype=np.float32).tobytes()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    whole = path.read_bytes()
    params = (
        Param(name="rows", dtype="uint8", shape=(ROWS, width), by_token=True),
        Param(name="bias", dtype="float32", shape=(16,)),
    )
    entry = FileEntry(size_bytes=len(whole), sha256=hashlib.sha256(whole).hexdigest())
    return Source(path, entry, params)


def opened(source: Source, verify: bool = True) -> Table:
    return Table(open_inside(source.path.parent, source.path.name), source, verify, int)


def test_a_call_holds_the_rows_of_its_tokens_alone(tmp_path: Path) -> None:
    table = opened(write(tmp_path / "table"))
    rows, bias = table.arrays
    seen: list[int] = []

    def look_up(x: Array, ids: Array) -> list[bytes]:
        found = [rows[i].tobytes() for i in ids.ravel()]
        seen.append(resident_bytes(rows))
        return found

    functions = {"t0_prefill": look_up, "t1_prefill": look_up}
    library = by_rows(Library(functions, lambda x: x, lambda x: x), [Lookup("t0", 1, lambda: [table])])
    ids = np.array([[5, 900, 5, 130]])
    for _ in range(2):
        assert library.functions["t0_prefill"](None, ids) == [row_bytes(i) for i in (5, 900, 5, 130)]
        assert seen.pop() == 3 * PAGE
        assert resident_bytes(rows) == 0
    assert library.functions["t1_prefill"] is look_up  # a template that has no table
    assert bias.tolist() == list(range(16))


def test_rows_across_pages_and_rows_that_are_not_there(tmp_path: Path) -> None:
    width = 6016
    table = opened(write(tmp_path / "table", width))
    rows = table.arrays[0]
    table.hold([1, 100, -1, 5000])  # beyond either end: the first row and the last, as the kernels have it
    for number in (1, 100, 0, ROWS - 1):
        assert rows[number].tobytes() == row_bytes(number, width)
    table.release()
    table.hold([1])
    assert resident_bytes(rows) == 2 * PAGE
    assert rows[1].tobytes() == row_bytes(1, width)


def test_memory_is_given_back_when_a_call_fails(tmp_path: Path) -> None:
    table = opened(write(tmp_path / "table"))

    def fails(ids: Array) -> None:
        raise RuntimeError("out of order")

    library = by_rows(
        Library({"t0_decode": fails}, lambda x: x, lambda x: x), [Lookup("t0", 0, lambda: [table])]
    )
    with pytest.raises(RuntimeError, match="out of order"):
        library.functions["t0_decode"](np.array([[7]]))
    assert resident_bytes(table.arrays[0]) == 0


@pytest.mark.parametrize("verify", [True, False])
def test_a_file_of_the_same_name_changes_nothing(tmp_path: Path, verify: bool) -> None:
    """As deploying a new bundle does it, or removing the old."""
    source = write(tmp_path / "table")
    table = opened(source, verify)
    (tmp_path / "new").write_bytes(b"x" * source.entry.size_bytes)
    os.replace(tmp_path / "new", source.path)
    table.hold([77])
    assert table.arrays[0][77].tobytes() == row_bytes(77)
    source.path.unlink()
    table.hold([78])
    assert table.arrays[0][78].tobytes() == row_bytes(78)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("change", ["overwritten", "cut", "emptied"])
def test_a_file_that_is_changed_in_place_is_noticed(tmp_path: Path, verify: bool, change: str) -> None:
    """A mapped file would give the new bytes, or end the process."""
    source = write(tmp_path / "table")
    table = opened(source, verify)
    with source.path.open("r+b") as file:
        if change == "overwritten":
            file.seek(PAGE + 500 * PAGE)
            file.write(b"another row")
        else:
            file.truncate(0 if change == "emptied" else 100 * PAGE)
    os.utime(source.path, ns=(1, 1))  # whatever the clock's resolution
    with pytest.raises(
        RunError, match=r"table was changed while it was in use: .* start llrun again"
    ) as caught:
        table.hold([500])
    assert (caught.value.code, caught.value.exit_code) == ("R209", 1)


def test_what_a_changed_file_still_holds_is_used(tmp_path: Path) -> None:
    """A touched file is as good as before, and so are the pages that nobody changed."""
    source = write(tmp_path / "table")
    table = opened(source)
    os.utime(source.path, ns=(1, 1))
    table.hold([500])
    with source.path.open("r+b") as file:
        file.seek(PAGE + 500 * PAGE)
        file.write(b"another row")
    table.hold([499, 501])
    with pytest.raises(RunError, match="was changed"):
        table.hold([499, 500])


def test_blocks_lie_side_by_side_on_pages() -> None:
    sizes = [3 * MIB + 5, 1, 5 * MIB]
    regions = [stretch.bytes for stretch in side_by_side(sizes)]
    assert [region.size for region in regions] == sizes
    starts = [region.ctypes.data for region in regions]
    assert starts[0] % (2 * MIB) == 0
    pages = [-(-size // mmap.PAGESIZE) * mmap.PAGESIZE for size in sizes]
    assert [b - a for a, b in pairwise(starts)] == pages[:-1]
    assert side_by_side([]) == []
