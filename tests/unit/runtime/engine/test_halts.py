"""A device is lost in mid-generation: what is under way is dropped, what was lost computed again, and nothing else."""

from __future__ import annotations

import numpy as np
import numpy_model
import pytest
from numpy_model import CHUNK, FIRST, greedy
from test_engine import Recorder, arrived, fed, perform
from test_switch import (
    ANNA,
    AT_FIRST,
    BERT,
    BERT_TWICE,
    HEAD,
    LIMITS,
    PROMPT,
    Net,
    at,
    begin,
    bert,
    next_program,
    of_epoch,
    switch,
)

from llrun.engine.engine import Engine
from llrun.engine.events import Closing, Halting, Inbox, Opening, Switch
from llrun.errors import RunError
from llrun.programs.installed import install
from llrun.programs.write import idle_program
from llrun.wire.frames import check_tensor
from llrun.wire.messages import Held
from llrun.wire.protocol import ALL_ROWS, LAST_CHUNK, REPLAY, ProtocolError

ON_HEAD = [HEAD, HEAD, HEAD, BERT, BERT, HEAD, HEAD]  # anna's blocks, taken over
BETWEEN = [HEAD, BERT, HEAD, BERT, BERT, HEAD, HEAD]
ON_BERT = [HEAD, BERT, BERT, BERT, BERT, HEAD, HEAD]


def halted(net: Net, names: list[str], epoch: int = 2) -> dict[str, tuple[Held, ...]]:
    for name in names:
        perform(net.engines[name], Halting(epoch))
    assert [net.stations[name].halts[-1][0] for name in names] == [epoch] * len(names)
    return {name: net.stations[name].halts[-1][1] for name in names}


def lose_anna(net: Net, owner: list[str], places: dict[str, tuple[int, ...]]) -> None:
    """Anna is gone, and others have taken over by `owner`."""
    net.lost = {ANNA}
    halted(net, [HEAD, BERT])
    for name, each in places.items():
        perform(net.engines[name], Switch(next_program(net.parts[name], owner), {0: each}))


def undisturbed(count: int) -> tuple[list[int], list[np.ndarray]]:
    net = Net()
    tokens = begin(net, count)
    return tokens, net.stations[HEAD].rows


@pytest.mark.parametrize(
    ("first", "owner", "places", "bert_runs"),
    [
        (AT_FIRST, ON_HEAD, {HEAD: (0, 13), BERT: (13,)}, []),
        (BERT_TWICE, BETWEEN, {HEAD: (0, 0, 13), BERT: (0, 13)}, [(0, 0), (0, 8)]),
        (AT_FIRST, ON_BERT, {HEAD: (0, 13), BERT: (0,)}, [(0, 0), (0, 8)]),
    ],
)
def test_what_a_lost_device_held_is_computed_again_and_no_bit_changes(first, owner, places, bert_runs):
    net = Net(first)
    tokens = begin(net, 4)
    net.feed(tokens[-1:], 13)  # a token that is never done
    lose_anna(net, owner, places)
    made, done = len(net.stations[HEAD].tokens), len(net.stations[BERT].done)
    net.feed(tokens[:13], 0, replay=True)
    net.deliver()
    assert len(net.stations[HEAD].tokens) == made
    assert net.stations[BERT].done[done:] == bert_runs
    assert net.stations[HEAD].done[-2:] == [(0, 0), (0, 8)]
    while len(tokens) < len(PROMPT) + 9:
        net.feed(tokens[-1:], len(tokens) - 1)
        tokens.append(net.answer())
    wanted, rows = undisturbed(9)
    assert tokens == wanted == [*PROMPT, *greedy(PROMPT, 9)]
    for found, due in zip(net.stations[HEAD].rows, rows, strict=True):
        np.testing.assert_array_equal(found, due)


def test_segments_that_are_past_a_step_cost_it_nothing():
    net = Net(BERT_TWICE)
    tokens = begin(net, 4)
    lose_anna(net, BETWEEN, {HEAD: (0, 0, 13), BERT: (0, 13)})
    net.feed(tokens[:8], 0, replay=True)
    net.deliver()
    cost = net.stations[BERT].costs[-1]
    assert (len(cost.runs), cost.runs[1], cost.compute_s) == (2, 0.0, cost.runs[0])
    assert cost.compute_s > 0
    assert cost.send_s > 0
    net.feed(tokens[8:13], 8, replay=True)
    net.feed(tokens[13:], 13)
    net.deliver()
    assert all(each > 0 for each in net.stations[BERT].costs[-1].runs)


def test_a_halt_in_the_middle_of_chunks_drops_them_all():
    net = Net()
    tokens = begin(net, 1)
    long = [int(token) for token in np.arange(40) % 97]
    net.feed(long, len(tokens) - 1)
    for _ in range(3):  # two chunks reach anna, one of them bert
        net.hand_over(net.mail.popleft())
    onward = next(letter for letter in net.mail if letter[1] == BERT)
    net.mail.remove(onward)
    net.hand_over(onward)
    count = len(net.stations[HEAD].done)
    held = halted(net, [HEAD, ANNA, BERT])
    base = len(tokens) - 1
    assert held[HEAD] == ()
    assert held[ANNA] == (Held(0, 1, 3, base + 3 * CHUNK),)
    assert held[BERT] == (Held(0, 3, 5, base + CHUNK),)
    net.deliver()  # what comes late, to whoever is still of that epoch
    assert halted(net, [ANNA, BERT]) == {ANNA: held[ANNA], BERT: held[BERT]}
    assert len(net.stations[HEAD].done) == count
    for name, places in ((HEAD, (base, base)), (ANNA, (base,)), (BERT, (base,))):
        perform(net.engines[name], Switch(next_program(net.parts[name], AT_FIRST), {0: places}))
    net.feed(tokens[-1:], base)
    assert [*tokens, net.answer()] == [*PROMPT, *greedy(PROMPT, 2)]


def test_tokens_fed_and_tensors_of_the_next_epoch_wait_for_the_program_after_a_halt():
    part, outside = numpy_model.device(HEAD, ["head", "anna", "bert"]), Recorder()
    subject = Engine(part, outside, Inbox())
    perform(subject, Opening(0), fed(0, 8, 0), fed(8, 5, 0), Halting(2), fed(0, 4, LAST_CHUNK))
    assert len(outside.sent) == 0  # the halt was there before anything ran
    perform(subject, switch(part, {0: 0}))
    assert [(h.epoch, h.position, h.rows) for _, h, _ in outside.sent] == [(2, 0, 4)]
    subject, outside, part = bert()
    perform(subject, Opening(0), Halting(2), of_epoch(2, arrived(FIRST + 2, 0, 8)), arrived(FIRST + 2, 0, 8))
    assert outside.done == []
    perform(subject, switch(part, {0: 0}))
    assert outside.done == [(0, 0)]


def test_a_halt_is_for_the_next_epoch_and_may_come_again():
    subject, outside, part = bert()
    perform(subject, Opening(0), Halting(2), Halting(2))
    assert outside.halts == [(2, ()), (2, ())]
    with pytest.raises(RunError, match="a halt for epoch 3, the next is 2") as caught:
        perform(subject, Halting(3))
    assert caught.value.code == "R207"
    subject, outside, part = bert()
    perform(subject, Opening(0), arrived(FIRST + 2, 8, 8), switch(part, {0: 0}), Halting(3))
    assert subject.installed.epoch == 2  # told before the halt, and nothing is under way any more
    assert outside.halts == [(3, ())]
    perform(subject, of_epoch(2, arrived(FIRST + 2, 0, 8)))
    assert outside.done == []
    perform(subject, switch(part, {0: 0}, epoch=3), of_epoch(3, arrived(FIRST + 2, 0, 8)))
    assert outside.done == [(0, 0)]


def test_sequences_come_and_go_while_a_device_is_halted():
    subject, outside, part = bert()
    perform(subject, Opening(0), arrived(FIRST + 2, 0, 8), Halting(2), Closing(0), Opening(1))
    perform(subject, switch(part, {1: 0}), of_epoch(2, arrived(FIRST + 2, 0, 8, sequence=1)))
    assert outside.done[-1] == (1, 0)


# --- steps that are computed again ---


def past(place: int = 13) -> tuple[Engine, Recorder]:
    """Bert, which has the first `place` tokens of sequence 0."""
    subject, outside, part = bert()
    perform(subject, Opening(0), arrived(FIRST + 2, 0, 8), arrived(FIRST + 2, 8, 5, LAST_CHUNK))
    perform(subject, Halting(2), switch(part, {0: place}))
    outside.done.clear()
    outside.sent.clear()
    return subject, outside


def again(position: int, rows: int, flags: int = REPLAY):
    return of_epoch(2, arrived(FIRST + 2, position, rows, flags))


def test_a_segment_drops_what_it_is_past_and_takes_what_it_needs():
    subject, outside = past()
    perform(subject, again(0, 8), again(8, 5))
    assert (outside.done, outside.sent) == ([], [])
    subject, outside = past(8)
    perform(subject, again(0, 8), again(8, 5))
    assert (outside.done, outside.sent) == ([(0, 8)], [])
    perform(subject, again(13, 1, LAST_CHUNK))
    assert [(h.position, h.flags & REPLAY) for _, h, _ in outside.sent] == [(13, 0)]


def test_a_step_that_a_segment_has_done_in_part_is_refused():
    subject, _ = past()
    with pytest.raises(
        ProtocolError, match="at 8 has 8 rows, of which segment 0 has done 5: it must end at 13"
    ):
        perform(subject, again(8, 8))
    part = numpy_model.device(HEAD, ["head", "anna", "bert"])
    subject = Engine(part, Recorder(), Inbox())
    perform(subject, Opening(0), fed(0, 8, 0), Halting(2), at(next_program(part, AT_FIRST), {0: 0}))
    perform(subject, fed(0, 5, REPLAY))
    with pytest.raises(
        ProtocolError, match="at 0 has 8 rows, of which segment 0 has done 5: it must end at 5"
    ):
        perform(subject, fed(0, 8, REPLAY))


def test_only_a_replay_may_be_of_tokens_that_were_computed_before():
    subject, _ = past()
    with pytest.raises(ProtocolError, match="h2 of sequence 0 at 8 came twice"):
        perform(subject, again(8, 5, LAST_CHUNK))
    part = numpy_model.device(HEAD, ["head", "anna", "bert"])
    subject = Engine(part, Recorder(), Inbox())
    perform(subject, Opening(0), fed(0, 8, 0))
    with pytest.raises(ProtocolError, match="the step of sequence 0 at 0 was computed before"):
        perform(subject, fed(0, 8, 0))


def test_a_step_of_which_nothing_is_left_is_done():
    part, outside = numpy_model.device(HEAD, ["head", "anna", "bert"]), Recorder()
    subject = Engine(part, outside, Inbox())
    perform(subject, Opening(0), fed(0, 8, 0))
    perform(subject, fed(0, 8, REPLAY))
    assert outside.done == [(0, 0), (0, 0)]
    assert (outside.costs[-1].runs, outside.costs[-1].sent_bytes) == ((0.0, 0.0), 0)


@pytest.mark.parametrize("flags", [REPLAY, REPLAY | LAST_CHUNK, REPLAY | ALL_ROWS])
def test_a_single_row_that_is_computed_again_makes_no_logits(flags):
    """The head has all blocks: were it a last row, there would be logits."""
    part, outside = numpy_model.device(HEAD, [HEAD]), Recorder()
    subject = Engine(part, outside, Inbox())
    perform(subject, Opening(0), Opening(1), fed(0, 1, flags), fed(0, 1, flags, sequence=1))
    assert (outside.done, outside.results) == ([(0, 0), (1, 0)], [])
    perform(subject, fed(1, 1, LAST_CHUNK))
    assert outside.results == [(0, 1, 1)]


def test_a_frame_of_a_last_row_that_is_computed_again_is_refused():
    header = arrived(FIRST + 2, 0, 8, REPLAY | LAST_CHUNK).headers[0]
    with pytest.raises(ProtocolError, match="tensor h2 is of a last chunk that is computed again"):
        check_tensor(header, ANNA, numpy_model.device(BERT, ["head", "anna", "bert"]).installed, LIMITS)


# --- devices that have nothing to run ---


def test_a_device_without_a_stage_waits_for_its_program():
    part, outside = numpy_model.device(BERT, ["head", "anna", "bert"]), Recorder()
    idle = install(part.record, idle_program(BERT, 6))
    subject = Engine(part, outside, Inbox(), installed=idle)
    perform(subject, Opening(3), Halting(7))
    assert outside.halts == [(7, ())]
    perform(subject, of_epoch(7, arrived(FIRST + 2, 0, 8, sequence=3)), switch(part, {3: 0}, epoch=7))
    assert (subject.installed.epoch, outside.done) == (7, [(3, 0)])
    perform(subject, Switch(install(part.record, idle_program(BERT, 8)), {}))
    assert (subject.installed.epoch, subject.sequences.held()) == (8, ())
    with pytest.raises(ProtocolError, match="unexpected tensor h2 from device anna"):
        perform(subject, of_epoch(8, arrived(FIRST + 2, 8, 8, sequence=3)))


def test_caches_of_blocks_that_do_not_run_any_more_are_given_up():
    subject, outside, part = bert()
    perform(subject, Opening(0), arrived(FIRST + 2, 0, 8))
    without = next_program(part, [HEAD, ANNA, ANNA, ANNA, BERT, HEAD, HEAD])
    perform(subject, at(without, {0: 8}))
    perform(subject, Halting(3))
    assert outside.halts == [(3, (Held(0, 4, 5, 8),))]
