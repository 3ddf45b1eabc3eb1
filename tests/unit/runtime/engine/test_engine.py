"""The engine alone, fed by hand: when segments run, what is sent, what is refused."""

from __future__ import annotations

import numpy as np
import numpy_model
import pytest
from numpy_model import FIRST, IDS, LOGITS, POSITIONS, TABLE, WIDTH

from llrun.engine.engine import Engine
from llrun.engine.events import Arrived, Closing, Fed, Feed, Inbox, Opening
from llrun.errors import RunError
from llrun.schema import DeviceProgram, Load, Receive, Run, Send
from llrun.wire.messages import Held, StepDone
from llrun.wire.protocol import (
    ALL_ROWS,
    HEADER_BYTES,
    LAST_CHUNK,
    ONE_ROW,
    ROWS,
    TENSOR,
    Header,
    ProtocolError,
    unpack_header,
    unpack_rows,
)

NAMES = ["head", "anna", "bert"]
SOURCES = {FIRST + 2: "anna", FIRST + 4: "bert"}


class Recorder:
    """The outside: remembers what comes out."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Header, np.ndarray]] = []
        self.frames: list[int] = []  # rows of sequences in each
        self.done: list[tuple[int, int]] = []
        self.results: list[tuple[int, int, int]] = []
        self.spent: list[object] = []
        self.costs: list[StepDone] = []
        self.refused: list[tuple[int, str]] = []
        self.halts: list[tuple[int, tuple[Held, ...]]] = []

    def send(self, destination, header, payload) -> None:
        frame, table = unpack_header(header[:HEADER_BYTES]), header[HEADER_BYTES:]
        headers = unpack_rows(frame, table) if frame.kind == ROWS else (frame,)
        for one, row in zip(headers, np.split(np.frombuffer(payload, np.float32), len(headers)), strict=True):
            self.sent.append((destination, one, row))
        self.frames.append(len(headers))

    def opened(self, sequence, figures) -> None:
        self.spent.append(figures)

    def halted(self, epoch, held) -> None:
        self.halts.append((epoch, held))

    def switched(self, installed) -> None:
        self.spent.append(installed)

    def steps_done(self, steps, figures) -> None:
        self.costs += steps
        self.done += [(step.sequence, step.position) for step in steps]

    def rejected(self, sequence, reason) -> None:
        self.refused.append((sequence, reason))

    def measured(self, figures) -> None:
        self.spent.append(figures)

    def logits(self, steps, rows) -> None:
        self.results += [(*step, rows.shape[1] // len(steps)) for step in steps]


def engine(name: str, **changes) -> tuple[Engine, Recorder]:
    part = numpy_model.device(name, NAMES, **changes)
    outside = Recorder()
    return Engine(part, outside, Inbox()), outside


def perform(subject: Engine, *events) -> None:
    """Let all of `events` come in at once, and run what can run then."""
    for event in events:
        subject.inbox.put(event)
    subject.settle()


def fed(position: int, rows: int, flags: int, sequence: int = 0) -> Fed:
    ids = np.arange(rows, dtype=np.int64)[None] % numpy_model.VOCABULARY
    return Fed((Feed(sequence, position, flags, ids),))


def arrived(tensor: int, position: int, rows: int, flags: int = 0, sequence: int = 0) -> Arrived:
    shape = (1, 1 if flags & ONE_ROW else rows, WIDTH)
    random = np.random.default_rng([tensor, position])
    array = random.standard_normal(shape).astype(np.float32)
    return Arrived(
        SOURCES.get(tensor, "head"),
        (Header(TENSOR, flags, 1, 1, sequence, position, rows, tensor, array.nbytes),),
        array,
    )


def test_head_skips_the_output_head_until_the_last_chunk_and_then_runs_one_row():
    subject, outside = engine("head")
    perform(
        subject,
        Opening(0),
        fed(0, 8, 0),
        fed(8, 5, LAST_CHUNK),
        arrived(FIRST + 4, 8, 5, LAST_CHUNK | ONE_ROW),
    )
    assert [(to, h.position, h.rows, h.flags) for to, h, _ in outside.sent] == [
        ("anna", 0, 8, 0),
        ("anna", 8, 5, LAST_CHUNK),
    ]
    assert outside.done == [(0, 0), (0, 8)]
    assert outside.results == [(0, 8, 1)]


def test_all_rows_runs_everything_on_every_chunk():
    subject, outside = engine("head")
    events = [fed(0, 8, ALL_ROWS), arrived(FIRST + 4, 0, 8, ALL_ROWS)]
    perform(subject, Opening(0), *events)
    assert outside.results == [(0, 0, 8)]


def test_last_worker_sends_only_the_last_row_of_the_last_chunk():
    subject, outside = engine("bert")
    perform(subject, Opening(0), arrived(FIRST + 2, 0, 8), arrived(FIRST + 2, 8, 3, LAST_CHUNK))
    ((destination, header, payload),) = outside.sent
    assert (destination, header.position, header.rows, header.flags) == ("head", 8, 3, LAST_CHUNK | ONE_ROW)
    assert header.length == payload.nbytes == WIDTH * 4
    assert outside.done == [(0, 0), (0, 8)]
    perform(subject, Opening(1), arrived(FIRST + 2, 0, 8, ALL_ROWS, sequence=1))
    assert outside.sent[-1][1].length == 8 * WIDTH * 4


def test_chunks_run_in_order_of_position_whatever_the_order_of_arrival():
    in_order, wanted = engine("bert")
    perform(in_order, Opening(0), arrived(FIRST + 2, 0, 8), arrived(FIRST + 2, 8, 3, LAST_CHUNK))
    shuffled, found = engine("bert")
    perform(shuffled, Opening(0), arrived(FIRST + 2, 8, 3, LAST_CHUNK), arrived(FIRST + 2, 0, 8))
    np.testing.assert_array_equal(found.sent[0][2], wanted.sent[0][2])


def two_sources() -> dict[str, object]:
    """A program of bert that waits for one tensor of anna and for one of the head."""
    steps = (
        Load(block=3),
        Run(template="positions", block=None, inputs=(POSITIONS,), outputs=(TABLE,)),
        Receive(tensor=FIRST + 2, source="anna"),
        Receive(tensor=FIRST, source="head"),
        Run(template="t1", block=3, inputs=(FIRST + 2, TABLE, POSITIONS), outputs=(FIRST + 3,)),
        Send(tensor=FIRST + 3, destination="head"),
        Send(tensor=FIRST, destination="head", rows="last"),
    )
    return {"program": DeviceProgram(device="bert", epoch=1, instructions=steps)}


def test_a_segment_waits_for_all_its_tensors_but_not_for_those_of_the_last_chunk():
    subject, outside = engine("bert", **two_sources())
    perform(subject, Opening(0), arrived(FIRST + 2, 0, 8))
    assert outside.done == [(0, 0)]
    perform(subject, arrived(FIRST + 2, 8, 2, LAST_CHUNK))
    assert outside.done == [(0, 0)]
    perform(subject, arrived(FIRST, 8, 2, LAST_CHUNK | ONE_ROW))
    assert outside.done == [(0, 0), (0, 8)]
    assert [(h.tensor, h.position, h.flags) for _, h, _ in outside.sent] == [
        (FIRST + 3, 0, 0),
        (FIRST + 3, 8, LAST_CHUNK),
        (FIRST, 8, LAST_CHUNK | ONE_ROW),
    ]


def test_what_an_early_chunk_does_not_need_may_come_or_not():
    subject, outside = engine("bert", **two_sources())
    perform(subject, Opening(0), arrived(FIRST, 0, 8), arrived(FIRST + 2, 0, 8), arrived(FIRST, 0, 8))
    assert outside.done == [(0, 0)]


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([arrived(FIRST + 2, 0, 8, sequence=5)], "h2 of sequence 5, which was never opened"),
        (
            [Opening(0), arrived(FIRST + 2, 8, 8), arrived(FIRST + 2, 8, 8)],
            "h2 of sequence 0 at 8 came twice",
        ),
        (
            [Opening(0), arrived(FIRST + 2, 0, 8), arrived(FIRST + 2, 0, 8)],
            "h2 of sequence 0 at 0 came twice",
        ),
        ([Opening(0), *[arrived(FIRST + 2, 8 * i, 8) for i in range(1, 99)]], "64 steps under way"),
    ],
)
def test_unexpected_tensors_are_refused_by_name(events, reason):
    subject, _ = engine("bert")
    with pytest.raises(ProtocolError, match=reason):
        perform(subject, *events)


def test_steps_that_disagree_are_refused():
    subject, _ = engine("bert", **two_sources())
    with pytest.raises(ProtocolError, match="has 8 rows, then 4"):
        perform(subject, Opening(0), arrived(FIRST, 0, 8, LAST_CHUNK), arrived(FIRST + 2, 0, 4, LAST_CHUNK))


def test_what_comes_late_for_a_closed_sequence_is_dropped():
    subject, outside = engine("bert")
    perform(subject, Opening(0), Closing(0), arrived(FIRST + 2, 0, 8), Opening(1))
    assert outside.sent == outside.done == []


def test_sequences_are_bounded_and_numbers_used_once():
    subject, outside = engine("bert")
    perform(subject, *[Opening(number) for number in range(64)])
    assert len(outside.spent) == 64
    assert outside.refused == []
    perform(subject, Opening(64), Opening(5), arrived(FIRST + 2, 0, 8, sequence=64))
    assert outside.refused == [
        (64, "64 sequences are open, and there is room for no more"),
        (5, "sequence 5 is not newer than sequence 64"),
    ]
    assert outside.done == []
    perform(subject, Closing(63), Opening(65), arrived(FIRST + 2, 0, 8, sequence=65))
    assert len(outside.spent) == 65


def test_a_failing_kernel_is_named():
    def broken(*_):
        raise RuntimeError("shape mismatch")

    part = numpy_model.device("bert", NAMES, numpy_model.library(t1=broken))
    subject = Engine(part, Recorder(), Inbox())
    with pytest.raises(RunError, match="template t1 of block 3 failed: shape mismatch") as caught:
        perform(subject, Opening(0), arrived(FIRST + 2, 0, 8))
    assert (caught.value.code, caught.value.exit_code) == ("R501", 1)


def test_a_tensor_of_another_size_than_the_program_says_is_not_sent():
    part = numpy_model.device("bert", NAMES, numpy_model.library(t1=lambda x, *_: x[..., :3]))
    subject = Engine(part, Recorder(), Inbox())
    with pytest.raises(RunError, match="tensor h4 came out as"):
        perform(subject, Opening(0), arrived(FIRST + 2, 0, 8, LAST_CHUNK))


def test_sequences_do_not_see_each_other():
    alone, wanted = engine("bert")
    perform(alone, Opening(0), arrived(FIRST + 2, 0, 8), arrived(FIRST + 2, 8, 8, LAST_CHUNK))
    mixed, found = engine("bert")
    perform(
        mixed,
        Opening(0),
        Opening(1),
        arrived(FIRST + 2, 0, 8),
        arrived(FIRST + 2, 0, 4, LAST_CHUNK, sequence=1),
        arrived(FIRST + 2, 8, 8, LAST_CHUNK),
    )
    np.testing.assert_array_equal(found.sent[-1][2], wanted.sent[-1][2])


def test_figures_count_what_was_sent_and_computed():
    subject, outside = engine("bert")
    perform(subject, Opening(0), arrived(FIRST + 2, 0, 1, LAST_CHUNK))
    perform(subject, Opening(1))
    before, after = outside.spent
    assert after.sent_bytes - before.sent_bytes == HEADER_BYTES + WIDTH * 4
    assert after.compute_s > before.compute_s == 0
    assert after.peak_memory_bytes > 1 << 20
    assert IDS != LOGITS
