"""What a device holds of sequences from one program to the next: kept, copied here, given up, and said."""

from __future__ import annotations

import numpy as np
import numpy_model
import pytest
from numpy_model import CONTEXT, WIDTH

from llrun.engine.caches import Caches
from llrun.engine.stores import SequenceStore
from llrun.errors import RunError
from llrun.wire.messages import Held
from llrun.wire.protocol import ProtocolError

NAMES = ["head", "anna", "bert"]


def store(segments=((3, 4),), blocks=None) -> SequenceStore:
    """Of all blocks of the model, of which 1 to 4 have caches; sequences 0 and 1 are open."""
    entries = [e for e in numpy_model.record("bert", NAMES).blocks if blocks is None or e.id in blocks]
    made = SequenceStore(entries, lambda array: array)
    made.prepare(segments, {})
    for number in (0, 1):
        assert made.open(number) is None
    return made


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)


def come(made: SequenceStore, sequence: int, block: int, start: int, values: np.ndarray) -> int:
    return Caches(made).rows_in(sequence, block, start, start + len(values), values.tobytes())


def test_what_runs_is_kept_and_what_runs_no_more_is_given_up() -> None:
    made = store()
    for block in (3, 4):
        made.caches(block)[0][0] = 7
    made.get(0).frontier = [8]
    made.prepare([(1,), (4,)], {0: (0, 8)})
    assert [int(made.caches(block)[0][0].max()) for block in (3, 4)] == [0, 7]
    assert made.get(0).frontier == [0, 8]
    assert made.get(1).frontier == [0, 0]
    assert made.held() == (Held(0, 4, 5, 8),)
    made.prepare([(3, 4)], {0: (0,)})  # it came back, and has nothing
    assert made.held() == ()


def test_rows_that_came_in_are_where_a_program_goes_on() -> None:
    made, values = store(), rows(20)
    assert come(made, 0, 1, 0, values[:8]) == 8
    assert come(made, 0, 1, 4, values[4:20]) == 20  # some of them again
    assert come(made, 0, 1, 0, values[:8]) == 20
    assert made.held() == (Held(0, 1, 2, 20),)
    with pytest.raises(RunError, match="sequence 0 cannot go on at 21: the cache of block 1 holds 20"):
        made.prepare([(1, 2)], {0: (21,)})
    made.prepare([(1,), (2,)], {0: (20, 0)})
    np.testing.assert_array_equal(made.caches(1)[0][0, 0, :20], values)
    assert made.held() == (Held(0, 1, 2, 20),)


def test_what_was_copied_and_is_not_wanted_is_given_up() -> None:
    for give_up in (lambda s: s.prepare([(3, 4)], {}), lambda s: s.close(0)):
        made = store()
        come(made, 0, 1, 0, rows(8))
        give_up(made)
        assert not made.caches(1)[0].any()
        assert made.held() == ()


def test_a_refused_program_changes_nothing() -> None:
    made = store()
    made.get(1).frontier = [8]
    come(made, 0, 1, 0, rows(8))
    with pytest.raises(RunError, match="sequence 1 cannot go on at 8: the cache of block 1 holds 0"):
        made.prepare([(1,)], {0: (8,), 1: (8,)})
    assert made.held() == (Held(0, 1, 2, 8), Held(1, 3, 5, 8))
    with pytest.raises(RunError, match="sequence 0 is to go on in 2 segments, the program has 1"):
        made.prepare([(1,)], {0: (0, 0)})


def test_rows_that_nobody_wants_any_more_are_not_written() -> None:
    made = store()
    assert come(made, 1, 3, 0, rows(8)) == 8  # block 3 runs here
    assert not made.caches(3)[0].any()
    made.close(0)
    assert made.open(2) is None  # in the slot of sequence 0
    assert come(made, 0, 1, 0, rows(8)) == 8
    assert come(made, 1, 1, 4, rows(8)) == 0  # four rows are missing
    assert not made.caches(1)[0].any()
    assert made.held() == ()


def test_rows_that_cannot_be_are_refused() -> None:
    made = store(blocks={0, 1, 3, 4})
    with pytest.raises(ProtocolError, match="rows of sequence 2, which was never opened"):
        come(made, 2, 1, 0, rows(8))
    for block in (0, 2):
        with pytest.raises(ProtocolError, match=f"rows of block {block}, which has no caches here"):
            come(made, 0, block, 0, rows(8))
    with pytest.raises(ProtocolError, match="rows from 4 on of block 1, sequence 0"):
        made.fill(0, 1, 4, 8)


def test_blocks_that_hold_as_much_are_said_together_unless_one_between_is_elsewhere() -> None:
    made = store(segments=((1, 2, 4), (3,)))
    made.get(0).frontier = [5, 5]
    made.get(1).frontier = [5, 4]
    assert made.held() == (Held(0, 1, 5, 5), Held(1, 1, 3, 5), Held(1, 3, 4, 4), Held(1, 4, 5, 5))
    made = store(segments=((1, 4),), blocks={0, 1, 2, 4, 5})
    made.get(0).frontier = [5]
    assert made.held() == (Held(0, 1, 2, 5), Held(0, 4, 5, 5))


def test_a_row_that_goes_out_is_what_lies_there() -> None:
    made, values = store(), rows(CONTEXT)
    made.caches(4)[0][1, 0] = values
    made.get(1).frontier = [30]
    assert Caches(made).rows_out(1, 4, 7, 30) == values[7:30].tobytes()
    assert Caches(made).rows_out(1, 4, 7, 31) is None
    assert Caches(made).rows_out(1, 1, 0, 1) is None
    made.close(1)
    assert Caches(made).rows_out(1, 4, 7, 30) is None
    assert Caches(made).row_bytes(4) == WIDTH * 4
    assert Caches(made).row_bytes(0) == Caches(made).row_bytes(99) == 0


def test_a_sequence_goes_on_from_what_another_holds() -> None:
    made, values = store(), rows(12)
    made.caches(3)[0][0] = 7
    made.get(0).frontier = [9]
    come(made, 0, 1, 0, values)
    assert made.open(2, 0, 8) is None
    assert made.get(0) is None
    assert made.was_closed(0)
    assert (made.get(2).slot, made.get(2).frontier) == (0, [8])
    assert made.held() == (Held(2, 1, 2, 8), Held(2, 3, 5, 8))
    assert made.caches(3)[0][0].all()
    assert made.open(3) is None
    assert made.get(3).slot == 2  # its own is nobody else's


@pytest.mark.parametrize(
    ("after", "tokens", "reason"),
    [(0, 10, "holds 9 tokens here"), (7, 4, "which it goes on from, is not here")],
)
def test_what_is_not_there_cannot_be_gone_on_from(after, tokens, reason) -> None:
    made = store()
    made.get(0).frontier = [9]
    assert reason in made.open(8, after, tokens)
    assert made.get(8) is None
    assert (made.get(0) is None) == (after == 0)
    assert made.open(9) is None


def test_a_device_that_runs_nothing_has_nothing_to_go_on_from() -> None:
    made = store(segments=())
    assert made.open(8, 7, 4) is None
    assert made.get(8).frontier == []
