"""What stays resident: weights without waste between blocks, and nothing of a table of which rows are read."""

from __future__ import annotations

import mmap
import re
from itertools import pairwise
from pathlib import Path

import numpy as np

from llrun.device import letting_go
from llrun.library import Library
from llrun.memory import side_by_side
from llrun.schema import FileEntry
from llrun.weights import map_table

MIB = 1 << 20


def resident_bytes(path: Path) -> int:
    """Of the mappings of `path` in this process."""
    parts = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    mine = [part for part in parts if part.splitlines()[:1] and part.splitlines()[0].endswith(str(path))]
    assert mine
    return sum(int(found.group(1)) * 1024 for part in mine if (found := re.search(r"Rss:\s+(\d+)", part)))


def test_a_table_is_given_back_after_each_call_and_reads_the_same_again(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_bytes(np.arange(4 * MIB, dtype=np.uint8).tobytes())
    table = map_table(path, FileEntry(size_bytes=4 * MIB, sha256=""))
    rows = np.frombuffer(table, np.uint8).reshape(-1, 4096)
    seen: list[int] = []

    def look_up(index: int) -> int:
        value = int(rows[index, 7])
        seen.append(resident_bytes(path))
        return value

    functions = {"t0_decode": look_up, "t1_decode": look_up}
    library = letting_go(Library(functions, lambda x: x, lambda x: x), {"t0"}, (table,))
    assert library.functions["t0_decode"](5) == 7
    assert seen[-1] > 0
    assert resident_bytes(path) == 0
    assert library.functions["t0_decode"](5) == 7
    library.functions["t1_decode"](9)  # a template that has no table
    assert resident_bytes(path) > 0


def test_blocks_lie_side_by_side_on_pages() -> None:
    sizes = [3 * MIB + 5, 1, 5 * MIB]
    regions = side_by_side(sizes)
    assert [region.size for region in regions] == sizes
    starts = [region.ctypes.data for region in regions]
    assert starts[0] % (2 * MIB) == 0
    pages = [-(-size // mmap.PAGESIZE) * mmap.PAGESIZE for size in sizes]
    assert [b - a for a, b in pairwise(starts)] == pages[:-1]
    assert side_by_side([]) == []
