"""Files of blocks that stream: what they give, time and again, is what they held first, or an error by their name."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy_model
import pytest
from msgspec.structs import replace

from llrun.device.blocks import BlockStore
from llrun.device.reading import BlockFiles
from llrun.device.slice import StoredSlice
from llrun.errors import RunError
from llrun.memory import Array
from llrun.schema import FileEntry, Param

PAGE, DEADLINE_S = 4096, 20.0


def soon(what: Callable[[], bool]) -> None:
    until = time.monotonic() + DEADLINE_S
    while not what():
        assert time.monotonic() < until
        time.sleep(0.002)


ROWS = 100  # 6.3 pieces of 64 KiB: the file ends within a page
PIECE = 64 << 10


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoredSlice:
    """The slice of bert, which runs blocks 3 and 4; 2 to 5 stream through a ring of 2."""
    monkeypatch.setattr("llrun.device.weights.PIECE", PIECE)
    record = numpy_model.record("bert", ["head", "anna", "bert"])
    text = json.dumps(
        {"w": {"dtype": "U8", "shape": [ROWS, PAGE - 1], "data_offsets": [0, ROWS * (PAGE - 1)]}}
    )
    start = text.encode().ljust(PAGE - 8)
    (tmp_path / "weights").mkdir()
    files = {}
    for block in record.blocks:
        data = len(start).to_bytes(8, "little") + start + rows(block.id).tobytes()
        (tmp_path / block.file).write_bytes(data)
        files[block.file] = FileEntry(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    params = (Param(name="w", dtype="uint8", shape=(ROWS, PAGE - 1)),)
    device = replace(record.envelope.devices["bert"], streamed=(2, 3, 4, 5), ring=2)
    envelope = replace(record.envelope, devices={**record.envelope.devices, "bert": device})
    blocks = tuple(replace(block, params=params) for block in record.blocks)
    return StoredSlice(tmp_path, "bert", None, replace(record, blocks=blocks, files=files, envelope=envelope))


def rows(block: int) -> Array:
    return np.random.default_rng(block).integers(0, 256, (ROWS, PAGE - 1), np.uint8)


def store(stored: StoredSlice, verify: bool = True) -> BlockStore:
    files = BlockFiles(stored, verify)
    streams = files.streams(lambda done, total: None)
    return BlockStore(stored.record, files, lambda array: array, {}, streams)


def taken(made: BlockStore, block: int) -> Array:
    window = made.resident[block].window
    assert window
    (array,) = window.take(block)
    copy = array.copy()
    window.done()
    return copy


def run(made: BlockStore, blocks: Sequence[int]) -> None:
    for block in blocks:
        np.testing.assert_array_equal(taken(made, block), rows(block))


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("direct", [True, False])
def test_what_is_streamed_is_what_the_files_hold(
    stored: StoredSlice, monkeypatch: pytest.MonkeyPatch, verify: bool, direct: bool
) -> None:
    if not direct:
        monkeypatch.setattr("llrun.device.streaming._past_the_cache", lambda file, wanted: False)
    made = store(stored, verify)
    assert sorted(made.resident) == [3, 4]
    for _ in range(3):
        run(made, (3, 4))


def test_streamed_blocks_come_and_go_without_memory(stored: StoredSlice) -> None:
    made = store(stored)
    made.read([2, 5])
    assert sorted(made.resident) == [2, 3, 4, 5]
    run(made, (2, 3, 4, 5, 2))
    made.read([1])  # one that does not stream lies beside the ring
    np.testing.assert_array_equal(made.resident[1].params[0], rows(1))
    made.drop([3, 1])
    assert sorted(made.resident) == [2, 4, 5]
    np.testing.assert_array_equal(taken(made, 4), rows(4))
    made.restore()
    assert sorted(made.resident) == [3, 4]
    np.testing.assert_array_equal(taken(made, 3), rows(3))


def test_the_ring_is_what_streaming_takes(stored: StoredSlice) -> None:
    files = BlockFiles(stored, True)
    assert [files.memory_bytes(block) for block in (2, 3, 4, 5)] == [0] * 4
    streams = files.streams(lambda done, total: None)
    assert streams
    assert len(streams.memory.bytes) == 2 * -(-files.size_bytes([2]) // PAGE) * PAGE


def test_damage_is_found_when_a_file_is_read_first(stored: StoredSlice) -> None:
    flip(stored.folder / "weights/4.safetensors", -1)
    with pytest.raises(RunError, match=r"4\.safetensors is damaged: its sha256") as caught:
        store(stored)
    assert caught.value.code == "R202"
    assert not open_files(stored.folder)


def open_files(folder: Path) -> list[str]:
    names = [os.readlink(each) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
    return [name for name in names if name.startswith(str(folder))]


def flip(path: Path, where: int) -> None:
    """Change a byte, and put the time of change back: no disk that lies does otherwise."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def rewrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(file.read())


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        (lambda path: flip(path, -1), "R209", "4.safetensors was changed"),
        (lambda path: flip(path, PIECE + 7), "R209", "4.safetensors was changed"),
        (lambda path: os.truncate(path, 2 * PIECE), "R209", "4.safetensors was changed"),
        (rewrite, "R209", "4.safetensors was changed"),
    ],
)
@pytest.mark.parametrize("verify", [True, False])
def test_a_file_that_is_changed_later(
    stored: StoredSlice, change: Callable[[Path], None], code: str, reason: str, verify: bool
) -> None:
    made = store(stored, verify)
    made.read([2, 5])
    run(made, (2, 3, 4, 5))
    change(stored.folder / "weights/4.safetensors")
    with pytest.raises(RunError, match=reason) as caught:
        run(made, (2, 3, 4, 5) * 2)
    assert caught.value.code == code
    made.restore()
    np.testing.assert_array_equal(taken(made, 3), rows(3))


def test_a_file_that_is_replaced_changes_nothing(stored: StoredSlice) -> None:
    made = store(stored)
    path = stored.folder / "weights/4.safetensors"
    path.unlink()
    path.write_bytes(b"another")
    run(made, (3, 4) * 2)


def test_a_read_that_fails_names_the_file(stored: StoredSlice, monkeypatch: pytest.MonkeyPatch) -> None:
    made = store(stored)
    taken(made, 3)

    def preadv(*arguments: object) -> int:
        raise OSError(5, "Input/output error")

    taken(made, 4)
    monkeypatch.setattr("llrun.device.streaming.os.preadv", preadv)
    with pytest.raises(RunError, match=r"cannot read .*[34]\.safetensors: Input/output error") as caught:
        run(made, (3, 4) * 2)
    assert caught.value.code == "R201"


def test_the_ring_goes_with_its_store(stored: StoredSlice) -> None:
    made = store(stored)
    taken(made, 3)
    assert len(open_files(stored.folder)) == 4
    del made
    gc.collect()
    soon(lambda: not open_files(stored.folder))
