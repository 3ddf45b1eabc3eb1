"""Blocks that stream: in order, ahead of their use, around the end, and never anything but what the file held first."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy_model
import pytest
from msgspec.structs import replace

from llrun.device.blocks import BlockStore
from llrun.device.reading import BlockFiles
from llrun.device.slice import StoredSlice
from llrun.device.window import Streams, Window
from llrun.errors import RunError
from llrun.memory import Array, side_by_side
from llrun.programs.ring import places
from llrun.schema import FileEntry, Param

PAGE = 4096
DEADLINE_S = 20.0


def soon(what: Callable[[], bool]) -> None:
    until = time.monotonic() + DEADLINE_S
    while not what():
        assert time.monotonic() < until
        time.sleep(0.002)


# --- a window of made-up files ---


class Drawn:
    """A file of pages, each of one number. `gate` holds up its reading; `fault` ends it after a page."""

    def __init__(self, block: int, pages: int, log: list[int]) -> None:
        self.block, self.size_bytes, self.log = block, pages * PAGE, log
        self.name = f"{block}.safetensors"
        self.gate = threading.Event()
        self.gate.set()
        self.fault: RunError | None = None
        self.wrong = self.closed = False

    def arrays(self, memory: Array) -> tuple[Array, ...]:
        return (memory[: self.size_bytes],)

    def read(self, memory: Array) -> Iterator[tuple[int, Array]]:
        self.log.append(self.block)
        for start in range(0, self.size_bytes, PAGE):
            assert self.gate.wait(DEADLINE_S)
            memory[start : start + PAGE] = self.block + 1
            yield start, memory[start : start + PAGE]
            if self.fault:
                raise self.fault

    def sum(self, piece: Array) -> int:
        return int(piece[0])

    def check(self, start: int, value: int) -> None:
        if self.wrong and start:
            raise RunError("R209", f"{self.name} was changed")

    def close(self) -> None:
        self.closed = True


class Made:
    """A window of blocks of these sizes, in pages."""

    def __init__(self, sizes: Sequence[int], ring: int) -> None:
        self.log: list[int] = []
        self.files = {block: Drawn(block, pages, self.log) for block, pages in enumerate(sizes)}
        where = places([file.size_bytes for file in self.files.values()], ring)
        (memory,) = side_by_side([where.size_bytes])
        self.window = Window(Streams(self.files, where, memory), lambda array: array)

    def run(self, block: int) -> None:
        (array,) = self.window.take(block)
        assert array.shape == (self.files[block].size_bytes,)
        assert (array == block + 1).all()
        self.window.done()


@pytest.mark.parametrize("sizes", [[2] * 5, [1, 4] * 3, [3, 1, 2, 5]])
@pytest.mark.parametrize("ring", [1, 2, 3])
def test_blocks_come_in_a_circle(sizes: list[int], ring: int) -> None:
    made = Made(sizes, ring)
    made.window.use(range(len(sizes)))
    for _ in range(5):
        for block in range(len(sizes)):
            made.run(block)
    count = len(sizes)
    assert made.log[: 5 * count] == [*range(count)] * 5  # each once a round


def test_the_next_are_read_while_one_runs_and_after_the_last_the_first() -> None:
    made = Made([1] * 5, 3)
    made.window.use(range(5))
    soon(lambda: made.log == [0, 1, 2])  # before anybody asks
    made.window.take(0)
    made.window.done()
    soon(lambda: made.log == [0, 1, 2, 3])
    for block in (1, 2, 3, 4):
        made.run(block)
    soon(lambda: made.log[-3:] == [0, 1, 2])
    assert made.log == [0, 1, 2, 3, 4, 0, 1, 2]


def test_a_block_that_runs_is_not_written_over() -> None:
    made = Made([1, 1, 1], 2)
    made.window.use(range(3))
    (array,) = made.window.take(0)
    soon(lambda: made.log == [0, 1])
    time.sleep(0.05)
    assert made.log == [0, 1]
    assert (array == 1).all()
    made.window.done()
    soon(lambda: made.log == [0, 1, 2])


def test_who_waits_gets_what_was_read() -> None:
    made = Made([2, 2, 2], 2)
    made.files[1].gate.clear()
    made.window.use(range(3))
    made.run(0)
    found: list[Array] = []
    thread = threading.Thread(target=lambda: found.extend(made.window.take(1)))
    thread.start()
    time.sleep(0.05)
    assert not found
    made.files[1].gate.set()
    thread.join(DEADLINE_S)
    assert (found[0] == 2).all()


def test_out_of_order_and_passed_by() -> None:
    """As a prompt's early chunks pass by blocks, and another sequence begins at a stage's first."""
    made = Made([1, 2, 1, 2, 1, 2], 3)
    made.window.use(range(6))
    for block in (0, 1, 2, 0, 1, 3, 5, 5, 4, 4, 2, 0):
        made.run(block)


def test_one_that_is_being_read_for_nothing_holds_nobody_up() -> None:
    made = Made([3] * 6, 3)
    made.files[1].gate.clear()
    made.window.use(range(6))
    made.run(0)
    soon(lambda: made.log == [0, 1])
    found: list[Array] = []
    thread = threading.Thread(target=lambda: found.extend(made.window.take(4)))
    thread.start()
    time.sleep(0.05)
    made.files[1].gate.set()
    thread.join(DEADLINE_S)
    assert (found[0] == 5).all()
    assert made.log[:3] == [0, 1, 4]


def test_only_what_is_used_is_read() -> None:
    made = Made([1] * 6, 2)
    made.window.use([1, 3, 4, 9])
    for block in (1, 3, 4, 1, 3, 4):
        made.run(block)
    assert set(made.log) == {1, 3, 4}
    made.window.use([4])
    for _ in range(3):
        made.run(4)


def test_an_error_comes_when_its_block_is_due() -> None:
    made = Made([2] * 4, 3)
    made.files[2].fault = RunError("R201", "cannot read 2.safetensors: Input/output error")
    made.window.use(range(4))
    made.run(0)
    made.run(1)
    for _ in range(2):
        with pytest.raises(RunError, match=r"2\.safetensors: Input/output"):
            made.window.take(2)
    made.files[2].fault = None
    made.window.restart()
    made.run(2)
    made.run(3)


def test_what_is_not_as_it_was_is_never_given() -> None:
    made = Made([2] * 4, 3)
    made.files[1].wrong = True
    made.window.use(range(4))
    made.run(0)
    with pytest.raises(RunError, match=r"1\.safetensors was changed"):
        made.window.take(1)


def test_a_disk_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llrun.device.window.STALL_S", 0.05)
    made = Made([1, 1, 1], 2)
    made.files[0].gate.clear()
    made.window.use(range(3))
    with pytest.raises(RunError, match=r"0\.safetensors: nothing came in 0\.05 s"):
        made.window.take(0)
    made.files[0].gate.set()


def test_nothing_is_left_of_one_that_is_closed() -> None:
    before = set(threading.enumerate())
    made = Made([1, 1, 1], 2)
    made.window.use(range(3))
    made.run(0)
    mine = set(threading.enumerate()) - before
    assert len(mine) == 2
    made.window.close()
    for thread in mine:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    assert all(file.closed for file in made.files.values())


# --- real files ---

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
