"""Steps with guesses, on one device: their rows count only when the step after them says so."""

from __future__ import annotations

import numpy_model
import pytest
from numpy_model import FIRST
from test_halts import ANNA, BERT, LIMITS, arrived, bert, of_epoch, perform, switch

from llrun.engine.events import Halting, Opening
from llrun.wire.frames import check_tensor
from llrun.wire.protocol import AHEAD, ALL_ROWS, DRAFTS, LAST_CHUNK, ProtocolError

GUESSED = LAST_CHUNK | ALL_ROWS | DRAFTS


def step(position: int, rows: int, flags: int = LAST_CHUNK):
    return arrived(FIRST + 2, position, rows, flags)


def begun():
    """Bert, with the first 5 tokens of sequence 0, a sixth, and three guesses behind it."""
    subject, outside, part = bert()
    perform(subject, Opening(0), step(0, 5), step(5, 4, GUESSED))
    return subject, outside, part


@pytest.mark.parametrize("right", [0, 1, 2, 3])
def test_the_next_step_begins_behind_the_guesses_that_were_right(right: int):
    subject, outside, _ = begun()
    perform(subject, step(6 + right, 1, LAST_CHUNK | (AHEAD if right else 0)), step(7 + right, 1))
    assert outside.done == [(0, 0), (0, 5), (0, 6 + right), (0, 7 + right)]


def test_guesses_are_no_tokens_of_the_sequence_until_then():
    subject, outside, _ = begun()
    perform(subject, Halting(2))
    assert {held.tokens for held in outside.halts[0][1]} == {6}


def test_a_step_that_skips_what_was_not_guessed_is_refused():
    subject, _, _ = begun()
    with pytest.raises(ProtocolError, match="sequence 0 goes on at 10, segment 0 has nothing from 9 on"):
        perform(subject, step(10, 1, LAST_CHUNK | AHEAD))


def test_guesses_are_gone_once_another_step_or_program_has_come():
    subject, _, _ = begun()
    perform(subject, step(6, 1))
    with pytest.raises(ProtocolError, match="goes on at 8, segment 0 has nothing from 7 on"):
        perform(subject, step(8, 1, LAST_CHUNK | AHEAD))
    subject, _, part = begun()
    perform(subject, Halting(2), switch(part, {0: 6}))
    with pytest.raises(ProtocolError, match="goes on at 8, segment 0 has nothing from 6 on"):
        perform(subject, of_epoch(2, step(8, 1, LAST_CHUNK | AHEAD)))


@pytest.mark.parametrize(("rows", "flags"), [(1, GUESSED), (4, LAST_CHUNK | DRAFTS), (4, DRAFTS)])
def test_a_frame_that_cannot_have_guesses_is_refused(rows: int, flags: int):
    header = step(0, rows, flags).headers[0]
    with pytest.raises(ProtocolError, match=f"tensor h2 of {rows} rows, flags {flags:#x}: no drafts"):
        check_tensor(header, ANNA, numpy_model.device(BERT, ["head", "anna", "bert"]).installed, LIMITS)
