"""Single rows of several sequences in one pass: what is joined, what is not, and that nobody notices."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import numpy_model
import pytest
from numpy_model import FIRST, LOGITS, POSITIONS, TABLE, VOCABULARY, WIDTH
from test_engine import NAMES, SOURCES, Recorder, arrived, engine, fed, perform

from llrun.device.library import Library
from llrun.engine.engine import Engine
from llrun.engine.events import Arrived, Closing, Fed, Feed, Inbox, Opening
from llrun.errors import RunError
from llrun.schema import DeviceProgram, Load, ModelInfo, Receive, Run, Send, Shapes
from llrun.wire.protocol import ALL_ROWS, LAST_CHUNK, ONE_ROW, TENSOR, Header, ProtocolError

IN = FIRST + 2  # what bert receives
LENGTHS = (1, 7, 8, 3, 5)


class Spy:
    """The model's functions; `calls`: name and first argument of each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, np.ndarray]] = []
        inner = numpy_model.library()
        self.library = Library(
            {name: self._watched(name, f) for name, f in inner.functions.items()}, inner.wrap, inner.unwrap
        )

    def _watched(self, name, function):
        def watched(first, *rest):
            self.calls.append((name, first))
            return function(first, *rest)

        return watched

    def widths(self, name: str) -> list[int]:
        return [first.shape[1] for called, first in self.calls if called == name]


def spied(name: str, **changes) -> tuple[Engine, Recorder, Spy]:
    spy, outside = Spy(), Recorder()
    part = numpy_model.device(name, NAMES, spy.library, **changes)
    return Engine(part, outside, Inbox()), outside, spy


def model(chunk: int) -> ModelInfo:
    return msgspec.structs.replace(
        numpy_model.record("bert", NAMES).model, shapes=Shapes(numpy_model.CONTEXT, chunk)
    )


def token(sequence: int, position: int, tensor: int = IN) -> Arrived:
    """One token's row, its values decided by sequence and position."""
    random = np.random.default_rng([tensor, sequence, position])
    row = random.standard_normal((1, 1, WIDTH)).astype(np.float32)
    header = Header(TENSOR, LAST_CHUNK, 1, 1, sequence, position, 1, tensor, row.nbytes)
    return Arrived(SOURCES.get(tensor, "head"), (header,), row)


def together(*tokens: Arrived) -> Arrived:
    """The same rows in one frame."""
    headers = tuple(header._replace(flags=header.flags | ONE_ROW) for one in tokens for header in one.headers)
    return Arrived(tokens[0].source, headers, np.concatenate([one.array for one in tokens], axis=1))


def rows_of(outside: Recorder) -> dict[tuple[int, int], np.ndarray]:
    return {(header.sequence, header.position): row for _, header, row in outside.sent}


def prompts(count: int) -> list:
    """Openings of `count` sequences, and a prompt of each, none as long as the next."""
    lengths = [LENGTHS[i % len(LENGTHS)] for i in range(count)]
    return [
        event
        for i, length in enumerate(lengths)
        for event in (Opening(i), arrived(IN, 0, length, LAST_CHUNK, sequence=i))
    ]


def next_tokens(count: int, step: int = 0) -> list[Arrived]:
    return [token(i, LENGTHS[i % len(LENGTHS)] + step) for i in range(count)]


def alone(count: int, steps: int = 1) -> dict[tuple[int, int], np.ndarray]:
    """What bert sends for each token when nothing is ever joined."""
    subject, outside = engine("bert")
    perform(subject, *prompts(count))
    outside.sent.clear()
    for step in range(steps):
        for one in next_tokens(count, step):
            perform(subject, one)
    return rows_of(outside)


def same(found: dict[tuple[int, int], np.ndarray], wanted: dict[tuple[int, int], np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for key, row in wanted.items():
        np.testing.assert_array_equal(found[key], row)


@pytest.mark.parametrize("joined", [False, True])
def test_tokens_that_are_there_at_once_run_as_one_and_give_the_same_bits(joined):
    subject, outside, spy = spied("bert")
    perform(subject, *prompts(5))
    outside.sent.clear()
    outside.frames.clear()
    outside.done.clear()
    spy.calls.clear()
    tokens = next_tokens(5)
    perform(subject, *([together(*tokens)] if joined else reversed(tokens)))
    assert spy.widths("t1_batch") == [5, 5]
    assert spy.widths("t1_decode") == []
    assert outside.frames == [5]
    assert outside.done == [(i, length) for i, length in enumerate(LENGTHS)]
    assert all(header.flags == LAST_CHUNK | ONE_ROW for _, header, _ in outside.sent)
    same(rows_of(outside), alone(5))


def test_a_frame_of_rows_is_computed_on_as_it_came():
    subject, _, spy = spied("bert")
    perform(subject, *prompts(3))
    spy.calls.clear()
    frame = together(*next_tokens(3))
    perform(subject, frame)
    assert next(first for name, first in spy.calls if name == "t1_batch") is frame.array


def test_rows_that_came_in_another_order_or_with_others_are_put_in_order():
    subject, outside, _ = spied("bert")
    perform(subject, *prompts(5))
    outside.sent.clear()
    tokens, later = next_tokens(5), next_tokens(5, step=1)
    perform(subject, together(*[tokens[i] for i in (2, 0, 4, 1, 3)]))
    perform(subject, Closing(4), together(*later))
    wanted = alone(5, steps=2)
    same(rows_of(outside), {key: row for key, row in wanted.items() if key != (4, LENGTHS[4] + 1)})


def test_seventeen_are_sixteen_and_one_and_the_one_is_first_in_the_next_pass():
    subject, outside, _ = spied("bert", model=model(chunk=32))
    perform(subject, *prompts(17))
    outside.frames.clear()
    outside.sent.clear()
    perform(subject, *next_tokens(17), *next_tokens(17, step=1))
    assert outside.frames == [16, 16, 2]
    assert {header.sequence for _, header, _ in outside.sent[16:32]} >= {16}
    same(rows_of(outside), alone(17, steps=2))


def test_no_more_are_joined_than_a_chunk_has_rows():
    subject, outside, _ = spied("bert", model=model(chunk=3))
    perform(subject, *[Opening(i) for i in range(5)])
    perform(subject, *[token(i, 0) for i in range(5)])
    assert outside.frames == [3, 2]


def test_prompts_and_tokens_do_not_mix():
    subject, outside, spy = spied("bert")
    perform(subject, *prompts(3), Opening(3))
    outside.frames.clear()
    spy.calls.clear()
    perform(subject, token(0, 1), arrived(IN, 0, 4, LAST_CHUNK, sequence=3), token(1, 7), token(2, 8))
    assert outside.frames == [3, 1]
    assert spy.widths("t1_prefill") == [4, 4]
    assert spy.widths("t1_batch") == [3, 3]


def test_who_is_late_runs_later_and_who_has_closed_does_not():
    subject, outside, spy = spied("bert")
    perform(subject, *prompts(5))
    outside.frames.clear()
    outside.sent.clear()
    tokens = next_tokens(5)
    perform(subject, tokens[0], tokens[4], Closing(4), tokens[2], Opening(5))
    perform(subject, tokens[1])
    assert outside.frames == [2, 1]
    frame = together(*next_tokens(5, step=1))
    perform(subject, Closing(3), token(5, 0), frame)  # its rows of 3 and 4 are nobody's any more
    assert outside.frames == [2, 1, 4]
    wanted = alone(5, steps=2)
    found = rows_of(outside)
    kept = {key: row for key, row in wanted.items() if key[0] in (0, 1, 2)}
    same({key: row for key, row in found.items() if key[0] != 5}, kept)
    assert spy.widths("t1_batch")[-2:] == [4, 4]


def test_a_row_of_a_sequence_that_was_never_opened_is_refused():
    subject, _ = engine("bert")
    with pytest.raises(ProtocolError, match="sequence 1, which was never opened"):
        perform(subject, Opening(0), together(token(0, 0), token(1, 0)))


def last_rows(sequence: int, rows: int, flags: int = LAST_CHUNK) -> Arrived:
    """What the head receives for its output head: a prompt's last row."""
    return arrived(FIRST + 4, 0, rows, flags | ONE_ROW, sequence)


def test_last_rows_of_prompts_and_tokens_share_the_output_head():
    events = [last_rows(0, 5), last_rows(1, 1), last_rows(2, 8)]
    opened = [one for i, rows in enumerate((5, 1, 8)) for one in (Opening(i), fed(0, rows, LAST_CHUNK, i))]
    subject, outside, spy = spied("head")
    perform(subject, *opened)
    spy.calls.clear()
    perform(subject, *events)
    assert spy.widths("t3_batch") == [3]
    assert outside.results == [(0, 0, 1), (1, 0, 1), (2, 0, 1)]
    assert outside.done == [(0, 0), (1, 0), (2, 0)]


def test_last_rows_have_the_positions_of_last_rows():
    steps = (
        Load(block=5),
        Receive(tensor=IN, source="anna"),
        Run(template="positions", block=None, inputs=(POSITIONS,), outputs=(TABLE,), rows="last"),
        Run(template="t2", block=5, inputs=(IN, TABLE), outputs=(FIRST + 5,), rows="last"),
        Send(tensor=FIRST + 5, destination="head", rows="last"),
    )
    subject, outside, spy = spied("bert", program=DeviceProgram(device="bert", epoch=1, instructions=steps))
    events = [arrived(IN, 0, rows, LAST_CHUNK, i) for i, rows in enumerate((5, 1, 8))]
    perform(subject, *[Opening(i) for i in range(3)], *events)
    assert spy.widths("t2_batch") == [3]
    for i, (event, rows) in enumerate(zip(events, (5, 1, 8), strict=True)):
        table = numpy_model.positions(np.array([[rows - 1]]))
        np.testing.assert_array_equal(outside.sent[i][2], numpy_model.trim(event.array[:, -1:], table)[0, 0])


def test_all_rows_of_a_prompt_are_not_a_single_row():
    subject, outside, spy = spied("head")
    opened = [Opening(0), fed(0, 4, ALL_ROWS, 0), Opening(1), fed(0, 4, LAST_CHUNK, 1)]
    perform(subject, *opened)
    perform(subject, arrived(FIRST + 4, 0, 4, ALL_ROWS, 0), last_rows(1, 4))
    assert spy.widths("t3_prefill") == [4]
    assert spy.widths("t3_decode") == [1]
    assert outside.results == [(0, 0, 4), (1, 0, 1)]


# --- several segments, several senders ---


def two_segments() -> dict[str, object]:
    """A program of bert whose second segment uses what its first has made and something new."""
    table = Run(template="positions", block=None, inputs=(POSITIONS,), outputs=(TABLE,))
    steps = (
        Load(block=3),
        Load(block=4),
        Receive(tensor=IN, source="anna"),
        table,
        Run(template="t1", block=3, inputs=(IN, TABLE, POSITIONS), outputs=(FIRST + 3,)),
        Send(tensor=FIRST + 3, destination="anna"),
        Receive(tensor=FIRST, source="head"),
        table,
        Run(template="t1", block=4, inputs=(FIRST, TABLE, POSITIONS), outputs=(FIRST + 4,)),
        Send(tensor=FIRST + 4, destination="head"),
        Send(tensor=FIRST + 3, destination="head"),
    )
    blocks = [
        msgspec.structs.replace(entry, template="t1") if entry.id == 4 else entry
        for entry in numpy_model.record("bert", NAMES).blocks
    ]
    return {"program": DeviceProgram(device="bert", epoch=1, instructions=steps), "blocks": tuple(blocks)}


def test_what_a_pass_leaves_for_a_later_segment_stays_joined_or_comes_apart_as_needed():
    def run(*batches: list[Arrived]) -> tuple[Recorder, Spy]:
        subject, outside, spy = spied("bert", **two_segments())
        perform(subject, *[Opening(i) for i in range(3)])
        for events in batches:
            perform(subject, *events)
        return outside, spy

    first = [token(i, 0) for i in range(3)]
    second = [token(i, 0, FIRST) for i in range(3)]
    one_by_one, _ = run(*[[one] for one in (*first, *second)])
    wanted = {(h.tensor, to, h.sequence): row for to, h, row in one_by_one.sent}
    for batches, frames in (
        ([first, second], [3, 3, 3]),
        ([first, [second[2], second[0]], [second[1]]], [3, 2, 2, 1, 1]),
        ([first, [second[1]], [second[0], second[2]]], [3, 1, 1, 2, 2]),
        ([second, first], [3, 3, 3]),
        ([[first[0]], first[1:], second], [1, 2, 3, 3]),
    ):
        outside, _ = run(*batches)
        assert outside.frames == frames
        same({(h.tensor, to, h.sequence): row for to, h, row in outside.sent}, wanted)


def test_a_tensor_before_its_tokens_waits_for_them():
    subject, outside = engine("head")
    perform(subject, Opening(0), arrived(FIRST + 4, 0, 1, LAST_CHUNK | ONE_ROW))
    assert outside.sent == outside.results == []
    perform(subject, fed(0, 1, LAST_CHUNK))
    assert outside.results == [(0, 0, 1)]


def test_logits_of_a_pass_are_each_sequence_s_own():
    ids = [[5, 6, 7], [8], [1, 2, 3, 4]]
    part = numpy_model.device("head", ["head"])
    outside = Recorder()
    rows: dict[int, np.ndarray] = {}
    outside.logits = lambda steps, found: rows.update(
        {number: found[0, i] for i, (number, _) in enumerate(steps)}
    )
    subject = Engine(part, outside, Inbox())
    for number, tokens in enumerate(ids):
        perform(subject, Opening(number), _feed(number, tokens[:-1], 0) if tokens[:-1] else Fed(()))
    feeds = [_feed(number, tokens[-1:], len(tokens) - 1).feeds[0] for number, tokens in enumerate(ids)]
    perform(subject, Fed(tuple(feeds)))
    for number, tokens in enumerate(ids):
        np.testing.assert_array_equal(rows[number], numpy_model.reference(tokens)[-1])
    assert rows[0].shape == (VOCABULARY,)
    assert LOGITS in part.installed.layouts


def _feed(number: int, tokens: list[int], position: int) -> Fed:
    return Fed((Feed(number, position, LAST_CHUNK, np.array([tokens], np.int64)),))


def test_a_failing_batch_is_named():
    def broken(*_):
        raise RuntimeError("no room")

    part = numpy_model.device("bert", NAMES)
    functions = {**part.library.functions, "t1_batch": broken}
    library = Library(functions, part.library.wrap, part.library.unwrap)
    subject = Engine(replace(part, library=library), Recorder(), Inbox())
    with pytest.raises(RunError, match="template t1 of block 3 failed: no room"):
        perform(subject, Opening(0), Opening(1), token(0, 0), token(1, 0))


def test_two_rows_of_one_sequence_are_never_one_pass():
    """A device of the last rows alone hears nothing of what lies between them: a token that was under way when its
    request was cancelled, and the last row of what was asked next."""
    devices = ["head", "anna", "bert", "cora"]
    part, outside = numpy_model.device("cora", devices), Recorder()
    subject = Engine(part, outside, Inbox())
    perform(subject, Opening(0), Opening(1))
    rows = [(0, 5), (0, 9), (1, 3)]
    perform(
        subject,
        *(
            Arrived(source, (header,), one.array)
            for position in rows
            for tensor, source in ((FIRST, "head"), (FIRST + 4, "bert"))
            for one in (token(*position, tensor),)
            for header in one.headers
        ),
    )
    assert outside.frames == [2, 1]
    assert sorted(outside.done) == sorted(rows)
