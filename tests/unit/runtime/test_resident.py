"""What stays resident: weights without waste between blocks, and nothing of a table of which rows are read."""

from __future__ import annotations

import mmap
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from llrun.device.library import Library
from llrun.device.load import by_rows
from llrun.device.weights import map_table, take_rows
from llrun.memory import Array, side_by_side
from llrun.schema import FileEntry

MIB = 1 << 20


def resident_bytes(path: Path) -> int:
    """Of the mappings of `path` in this process."""
    parts = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    mine = [part for part in parts if part.splitlines()[:1] and part.splitlines()[0].endswith(str(path))]
    assert mine
    return sum(int(found.group(1)) * 1024 for part in mine if (found := re.search(r"Rss:\s+(\d+)", part)))


@pytest.fixture
def table(tmp_path: Path) -> tuple[Path, mmap.mmap, Array]:
    """A mapped file of 1024 rows of 4 KiB, each byte its row's number in the file's 256."""
    path = tmp_path / "table"
    path.write_bytes(np.repeat(np.arange(1024, dtype=np.uint8), 4096).tobytes())
    region = map_table(path, FileEntry(size_bytes=4 * MIB, sha256=""))
    return path, region, np.frombuffer(region, np.uint8).reshape(1024, 4096)


def test_a_call_holds_the_rows_of_its_tokens_alone(table: tuple[Path, mmap.mmap, Array]) -> None:
    path, region, rows = table
    seen: list[int] = []

    def look_up(ids: Array) -> Array:
        values = rows[ids.ravel(), 7]
        seen.append(resident_bytes(path))
        return values

    functions = {"t0_prefill": look_up, "t1_prefill": look_up}
    library = by_rows(Library(functions, lambda x: x, lambda x: x), {"t0"}, [(region, [rows])])
    ids = np.array([[5, 900, 5, 130]])
    for _ in range(2):
        assert library.functions["t0_prefill"](ids).tolist() == [5, 900 % 256, 5, 130]
        assert seen.pop() == 3 * 4096
        assert resident_bytes(path) == 0
    library.functions["t1_prefill"](ids)  # a template that has no table
    assert resident_bytes(path) > 3 * 4096


def test_rows_across_pages_and_rows_that_are_not_there(table: tuple[Path, mmap.mmap, Array]) -> None:
    path, region, rows = table
    take_rows(region, [rows.reshape(-1)[4096 : 4096 + 6000 * 100].reshape(100, 6000)], [1, 100, -1])
    assert resident_bytes(path) == 2 * 4096  # bytes 10,096 to 16,095: pages 2 and 3


def test_blocks_lie_side_by_side_on_pages() -> None:
    sizes = [3 * MIB + 5, 1, 5 * MIB]
    regions = side_by_side(sizes)
    assert [region.size for region in regions] == sizes
    starts = [region.ctypes.data for region in regions]
    assert starts[0] % (2 * MIB) == 0
    pages = [-(-size // mmap.PAGESIZE) * mmap.PAGESIZE for size in sizes]
    assert [b - a for a, b in pairwise(starts)] == pages[:-1]
    assert side_by_side([]) == []
