"""Where sequences go on after a loss: stages, cuts and flags of what is fed again."""

from __future__ import annotations

import numpy as np
import numpy_group
import numpy_model
import pytest
from numpy_group import split

from llrun.head.feeding import Feeding
from llrun.head.history import History
from llrun.head.replay import Rewind, after_move, by_block, places_of, rewind
from llrun.programs.transmissions import transmissions
from llrun.programs.write import idle_program, write_programs
from llrun.schema import AllReduceKind, StageRecord
from llrun.wire.messages import Held, Places, StepDone
from llrun.wire.protocol import ALL_ROWS, LAST_CHUNK, REPLAY

MODEL = numpy_model.record("head", ["head", "anna", "bert"]).model
STAGES = (
    StageRecord.on("head", 0, 1),
    StageRecord.on("anna", 1, 3),
    StageRecord.on("bert", 3, 5),
    StageRecord.on("head", 5, 7),
)
CACHED = {"head": (1, 2, 3, 4), "anna": (1, 2, 3, 4), "bert": (1, 2, 3, 4)}  # the blocks 1 to 4 have caches


def history(length: int, fed: int, queued: int | None = None, awaited: int | None = None) -> History:
    return History(
        list(range(length)),
        queued=length if queued is None else queued,
        fed=fed,
        awaited=awaited,
        final=awaited,
    )


def kept(**tokens: dict[int, int]) -> dict[str, dict[int, dict[int, int]]]:
    return {device: {0: held} for device, held in tokens.items()}


def test_nothing_is_lost_nothing_is_fed_again():
    way = rewind(0, history(20, 20), STAGES, CACHED, kept(anna={1: 20, 2: 20}, bert={3: 20, 4: 20}))
    assert way == Rewind(0, (20, 20, 20, 20), 20, 0)


def test_a_row_that_is_awaited_is_fed_again():
    way = rewind(
        0, history(20, 20, awaited=19), STAGES, CACHED, kept(anna={1: 20, 2: 20}, bert={3: 20, 4: 20})
    )
    assert way == Rewind(0, (19, 19, 19, 19), 19, 0)


def test_what_comes_before_a_lost_cache_is_computed_again_and_what_comes_after_is_not():
    way = rewind(0, history(20, 20, awaited=19), STAGES, CACHED, kept(anna={}, bert={3: 20, 4: 20}))
    assert way == Rewind(0, (0, 0, 19, 19), 0, 19)
    way = rewind(0, history(20, 20, awaited=19), STAGES, CACHED, kept(anna={1: 20, 2: 20}, bert={}))
    assert way == Rewind(0, (0, 0, 0, 19), 0, 19)


def test_a_stage_goes_on_where_its_least_cache_ends():
    way = rewind(
        0, history(20, 20, awaited=19), STAGES, CACHED, kept(anna={1: 20, 2: 17}, bert={3: 19, 4: 18})
    )
    assert way.stages == (17, 17, 18, 19)


def test_a_prompt_that_was_under_way():
    """Two chunks were done everywhere, a third only on anna; the fourth waits."""
    way = rewind(
        0, history(30, 24, awaited=29), STAGES, CACHED, kept(anna={1: 24, 2: 24}, bert={3: 16, 4: 16})
    )
    assert way.stages == (16, 16, 16, 24)


def test_everything_is_lost():
    way = rewind(0, history(20, 20, awaited=19), STAGES, CACHED, {})
    assert way == Rewind(0, (0, 0, 0, 0), 0, 19)


def test_what_each_device_is_told():
    ways = [Rewind(3, (0, 0, 5, 9), 0, 9), Rewind(4, (2, 2, 2, 2), 2, 0)]
    graph = numpy_model.graph()
    programs = write_programs(graph, STAGES, transmissions(graph, STAGES))
    assert places_of(ways, STAGES, programs["head"]) == (Places(3, (0, 9)), Places(4, (2, 2)))
    assert places_of(ways, STAGES, programs["bert"]) == (Places(3, (5,)), Places(4, (2,)))
    assert places_of(ways, STAGES, idle_program("cora")) == (Places(3, ()), Places(4, ()))


def test_a_group_s_segments_go_on_where_the_first_of_their_stages_does():
    """The head's own first block and its first shard share a segment; so do its last tail and what comes after."""
    group = split(("anna", "head"), AllReduceKind.STAR, 1, blocks=(2, 4))
    stages = numpy_group.stages("head", group)
    ways = [Rewind(3, (0, 5, 9), 0, 9)]
    programs = {name: numpy_group.record(name, ["head", "anna"], group).program for name in ("head", "anna")}
    # blocks 0, 1 and the shard of 2; the sum, the tail of 2, the shard of 3; the sum, the tail of 3, blocks 4 to 6
    assert places_of(ways, stages, programs["head"]) == (Places(3, (0, 5, 5)),)
    assert places_of(ways, stages, programs["anna"]) == (Places(3, (5, 5, 5)),)
    ring = split(("anna", "head", "bert"), AllReduceKind.RING, blocks=(2, 4))
    program = numpy_group.record("head", ["head", "anna", "bert"], ring).program
    # the same, and a segment for each running sum, which runs no block
    assert places_of(ways, numpy_group.stages("head", ring), program) == (Places(3, (0, 5, 5, 5, 5)),)
    kept = {"head": {3: {11: 7, 13: 7, 1: 9, 4: 9}}, "anna": {3: {11: 5, 13: 6}}}
    cached = {"head": (1, 4, 11, 13), "anna": (11, 13)}
    assert rewind(3, history(12, 9), stages, cached, kept).stages == (5, 5, 9)
    assert rewind(3, history(12, 9), stages, cached, {**kept, "anna": {}}).stages == (0, 0, 9)


def test_what_is_cut_otherwise_is_computed_again_after_a_move():
    group = split(("anna", "bert"), AllReduceKind.STAR, blocks=(2, 4))
    before = numpy_group.stages("head", group)
    after = (before[0], StageRecord.on("anna", 2, 4), before[2])
    cached = {"head": (1, 4), "anna": (2, 3, 11, 13), "bert": (11, 13)}
    assert after_move(3, history(12, 9), before, after, cached) == Rewind(3, (0, 0, 9), 0, 9)
    assert after_move(3, history(12, 9), after, before, cached) == Rewind(3, (0, 0, 9), 0, 9)
    later = (StageRecord.on("head", 0, 1), StageRecord.on("anna", 1, 2), *before[1:])
    assert after_move(3, history(12, 9), before, later, cached) == Rewind(3, (9, 9, 9, 9), 9, 0)
    direct = split(("anna", "bert"), AllReduceKind.DIRECT, blocks=(2, 4))
    assert after_move(3, history(12, 9), before, numpy_group.stages("head", direct), cached).again == 0


def test_what_is_held_by_block():
    assert by_block([Held(7, 1, 3, 20), Held(7, 3, 4, 12), Held(8, 1, 2, 5)]) == {
        7: {1: 20, 2: 20, 3: 12},
        8: {1: 5},
    }


def fed(stages: tuple[int, ...], past: History) -> list[tuple[int, int, int]]:
    """Position, rows and flags of what is fed again, chunk after chunk."""
    feeding = Feeding(MODEL, lambda tokens: 8)
    feeding.begin(0)
    feeding.history(0).__dict__.update(past.__dict__)
    feeding.progress.plan({"head", "anna", "bert"}, ())
    feeding.rewind(Rewind(0, stages, min(stages), 0), {"head": [0, 3], "anna": [1], "bert": [2]})
    steps = []
    while feeds := feeding.release():
        for feed in feeds:
            assert np.array_equal(feed.ids[0], range(feed.position, feed.position + feed.ids.shape[1]))
            steps.append((feed.position, feed.ids.shape[1], feed.flags))
            for device, first in {"head": stages[0], "anna": stages[1], "bert": stages[2]}.items():
                if first <= feed.position:
                    feeding.done(device, [StepDone(0, feed.position, 0.0, 0.0, 0)])
    assert feeding.progress.quiet()
    assert feeding.history(0).fed == past.queued
    return steps


def test_a_token_alone():
    assert fed((19, 19, 19, 19), history(20, 20, awaited=19)) == [(19, 1, LAST_CHUNK)]


def test_chunks_end_where_a_stage_begins():
    """Chunks have 8 rows. What some stage has computed is a replay; the token that is awaited is none."""
    assert fed((0, 0, 17, 19), history(20, 20, awaited=19)) == [
        (0, 8, REPLAY),
        (8, 8, REPLAY),
        (16, 1, REPLAY),
        (17, 2, REPLAY),
        (19, 1, LAST_CHUNK),
    ]


def test_a_prompts_rest_ends_with_its_last_chunk():
    assert fed((16, 16, 16, 24), history(30, 24, awaited=29)) == [(16, 8, REPLAY), (24, 6, LAST_CHUNK)]


def test_what_nobody_awaits_is_only_kept():
    assert fed((0, 0, 9, 9), history(9, 9)) == [(0, 8, REPLAY), (8, 1, REPLAY)]
    assert fed((0, 0, 0, 0), history(9, 9)) == [(0, 8, 0), (8, 1, 0)]


def test_every_row_is_awaited():
    past = history(20, 20, awaited=8)
    past.all_rows = True
    both = LAST_CHUNK | ALL_ROWS
    assert fed((0, 0, 8, 8), past) == [(0, 8, REPLAY), (8, 8, ALL_ROWS), (16, 4, both)]


def test_held_tokens_go_when_they_are_let():
    feeding = Feeding(MODEL, lambda tokens: 8)
    feeding.progress.plan({"head"}, ())
    for number in (0, 1):
        feeding.begin(number)
        feeding.history(number).extend([5])
    feeding.held = True
    assert feeding.add([0, 1], False) == []
    assert feeding.progress.quiet()
    feeding.held = False
    assert [(feed.sequence, feed.position, feed.flags) for feed in feeding.release()] == [
        (0, 0, LAST_CHUNK),
        (1, 0, LAST_CHUNK),
    ]
    assert not feeding.progress.quiet()
    assert not feeding.done("head", [StepDone(0, 0, 0.0, 0.0, 0)])
    assert not feeding.progress.quiet()
    feeding.done("head", [StepDone(1, 0, 0.0, 0.0, 0)])
    assert feeding.progress.quiet()


@pytest.mark.parametrize("cancelled", [True, False])
def test_logits_that_came_are_awaited_no_more(cancelled):
    feeding = Feeding(MODEL, lambda tokens: 8)
    feeding.progress.plan({"head"}, ())
    feeding.begin(0)
    past = feeding.history(0)
    past.extend(range(30))
    feeding.add([0], False)
    assert (past.fed, past.queued, past.awaited) == (16, 30, 29)
    if cancelled:
        feeding.withdraw(0)
        assert (past.queued, past.awaited) == (16, None)
        return
    for position in (0, 8):
        feeding.done("head", [StepDone(0, position, 0.0, 0.0, 0)])
    feeding.release()
    assert not past.answered(8, 1)
    assert past.awaited == 29
    assert past.answered(24, 1)
    assert past.awaited is None
    assert not past.answered(24, 1)
    past.extend([7])
    past.take()
    assert not past.answered(24, 1)  # of the step before it, while this one waits
    assert past.awaited == 30
