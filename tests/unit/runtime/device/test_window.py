"""Blocks that stream: in order, ahead of their use, around the end, and never anything but what the file held first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from llrun.device.window import Streams, Window
from llrun.errors import RunError
from llrun.memory import Array, side_by_side
from llrun.programs.ring import places

PAGE = 4096
DEADLINE_S = 20.0


def soon(what: Callable[[], bool]) -> None:
    until = time.monotonic() + DEADLINE_S
    while not what():
        assert time.monotonic() < until
        time.sleep(0.002)


class Drawn:
    """A file of pages, each of one number. `gate` holds up its reading; `fault` ends it after a page."""

    def __init__(self, block: int, pages: int, log: list[int]) -> None:
        self.block, self.size_bytes, self.log = block, pages * PAGE, log
        self.name = f"{block}.safetensors"
        self.gate = threading.Event()
        self.gate.set()
        self.fault: RunError | None = None
        self.wrong = self.closed = False
        self.pages = 0  # that were read, all told

    def arrays(self, memory: Array) -> tuple[Array, ...]:
        return (memory[: self.size_bytes],)

    def read(self, memory: Array) -> Iterator[tuple[int, Array]]:
        self.log.append(self.block)
        for start in range(0, self.size_bytes, PAGE):
            assert self.gate.wait(DEADLINE_S)
            memory[start : start + PAGE] = self.block + 1
            self.pages += 1
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
        self.wrapped = 0
        self.window = Window(Streams(self.files, where, memory), self.wrap)

    def wrap(self, array: Array) -> Array:
        self.wrapped += 1
        return array

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


def test_arguments_are_made_before_anything_runs() -> None:
    made = Made([1, 4] * 3, 3)
    before = made.wrapped
    made.window.use(range(6))
    for block in [*range(6)] * 4:
        made.run(block)
    assert made.wrapped == before > 6


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
    assert made.files[1].pages == 1  # of three


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
