"""A device whose blocks stream computes what one does that has them all, and what it waits for is not computing."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import numpy_model
import pytest
from numpy_model import FIRST
from test_engine import NAMES, Recorder, arrived, engine, perform

from llrun.device.blocks import BlockStore
from llrun.device.load import Device
from llrun.device.window import Streams
from llrun.engine.engine import Engine
from llrun.engine.events import Inbox, Opening
from llrun.errors import RunError
from llrun.memory import Array, side_by_side
from llrun.programs.ring import places
from llrun.wire.protocol import LAST_CHUNK

PAGE, SLOW_S = 4096, 0.03


class File:
    """The weights of a block, read in a while."""

    def __init__(self, block: int) -> None:
        (self.weights,) = numpy_model.weights()[block]
        self.name, self.size_bytes = f"{block}.safetensors", self.weights.nbytes
        self.fault: RunError | None = None

    def arrays(self, memory: Array) -> tuple[Array, ...]:
        return (memory[: self.size_bytes].view(np.float32).reshape(self.weights.shape),)

    def read(self, memory: Array) -> Iterator[tuple[int, Array]]:
        time.sleep(SLOW_S)
        if self.fault:
            raise self.fault
        memory[: self.size_bytes] = self.weights.view(np.uint8).reshape(-1)
        yield 0, memory[: self.size_bytes]

    def sum(self, piece: Array) -> int:
        return len(piece)

    def check(self, start: int, value: int) -> None:
        pass

    def close(self) -> None:
        pass


def streaming(ring: int) -> tuple[Engine, Recorder, dict[int, File]]:
    """Anna, who runs the mixers 1 and 2."""
    whole = numpy_model.device("anna", NAMES, resident=())
    files = {block: File(block) for block in (1, 2)}
    where = places([file.size_bytes for file in files.values()], ring)
    (memory,) = side_by_side([where.size_bytes])
    wrap = whole.library.wrap
    store = BlockStore(whole.record, numpy_model.Parts(), wrap, {}, Streams(files, where, memory))
    outside = Recorder()
    device = Device(whole.record, whole.installed, store, whole.library)
    return Engine(device, outside, Inbox()), outside, files


@pytest.mark.parametrize("ring", [1, 2])
def test_the_same_comes_out(ring: int) -> None:
    whole, wanted = engine("anna")
    subject, found, _ = streaming(ring)
    events = [Opening(0), Opening(1), arrived(FIRST, 0, 8), arrived(FIRST, 0, 8, sequence=1)]
    events += [arrived(FIRST, 8, 3, LAST_CHUNK), arrived(FIRST, 8, 3, LAST_CHUNK, sequence=1)]
    events += [arrived(FIRST, 11 + i, 1, LAST_CHUNK) for i in range(4)]
    for each in events:
        perform(whole, each)
        perform(subject, each)
    assert len(found.sent) == len(wanted.sent) == 8
    for (_, _, payload), (_, _, due) in zip(found.sent, wanted.sent, strict=True):
        np.testing.assert_array_equal(payload, due)


def test_waiting_for_weights_is_waiting() -> None:
    subject, outside, _ = streaming(1)
    perform(subject, Opening(0), *[arrived(FIRST, i, 1, LAST_CHUNK) for i in range(4)])
    assert sum(step.wait_s for step in outside.costs) > 7 * SLOW_S
    assert sum(step.compute_s for step in outside.costs) < 4 * SLOW_S
    figures = subject.measure()
    assert figures.wait_s == pytest.approx(sum(step.wait_s for step in outside.costs))


def test_an_error_of_the_disk_ends_it_by_the_files_name() -> None:
    subject, outside, files = streaming(2)
    perform(subject, Opening(0), arrived(FIRST, 0, 1, LAST_CHUNK))
    files[2].fault = RunError("R201", "cannot read 2.safetensors: Input/output error")
    with pytest.raises(RunError, match=r"2\.safetensors: Input/output error"):
        perform(subject, *[arrived(FIRST, i, 1, LAST_CHUNK) for i in range(1, 4)])
    assert len(outside.sent) <= 2
