"""What people are told of a move, and what a request's result has of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from llrun.faces.console import Console
from llrun.head.moves import Move, MoveReason, in_words
from llrun.requests.request import Handle, Request
from llrun.schema import StageRecord

BEFORE = (StageRecord.on("laptop", 0, 4), StageRecord.on("pi", 4, 9), StageRecord.on("laptop", 9, 10))
GROUP = ("pi", "old")
SHARED = [
    (BEFORE[0], StageRecord(GROUP, shares, (4, 9), 0, "direct", 0, number), BEFORE[2])
    for number, shares in enumerate([(0.5, 0.5), (0.25, 0.75)])
]
AFTER = (StageRecord.on("laptop", 0, 6), StageRecord.on("old", 6, 9), StageRecord.on("laptop", 9, 10))
MOVE = Move(17, 3, MoveReason.LOST, "pi", AFTER, 0.0312, 0, 40, 5.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"reason": MoveReason.SLOW, "moved_bytes": 2_340_000},
            "Blocks moved, as they are faster there: 4-5 from pi to laptop, 6-8 from pi to old; 31 ms without a token,"
            " 2.3 MB of caches copied",
        ),
        (
            {"reason": MoveReason.HOOK, "stages": (StageRecord.on("laptop", 0, 10),)},
            "Blocks moved, as the balancing function says: 4-8 from pi to laptop; 31 ms without a token",
        ),
        (
            {"reason": MoveReason.JOINED, "device": "old", "pause_s": 0.0004},
            "Blocks moved, as device old takes part: 4-5 from pi to laptop, 6-8 from pi to old; 0 ms without a token",
        ),
    ],
)
def test_a_move_in_a_line(changes, words):
    assert in_words(replace(MOVE, **changes), BEFORE) == words


def test_shares_that_move_in_a_line():
    made = replace(MOVE, reason=MoveReason.SLOW, stages=SHARED[1])
    words = "Blocks moved, as they are faster there: 4-8 from pi+old by 50:50 to 25:75; 31 ms without a token"
    assert in_words(made, SHARED[0]) == words


def test_a_request_has_the_moves_that_it_saw_at_its_own_tokens(capsys):
    handle = Handle(Request([1, 2], 5, produced=(7, 8)), lambda _: None)
    start = handle.submitted_at
    handle.tokens += [9, 10, 11]
    handle.times += [start + 1, start + 2, start + 3]
    moves = [replace(MOVE, at_s=start + at) for at in (-0.5, 0.5, 2.0, 2.5, 9)]
    handle.finish({}, moves)
    assert handle.result
    assert [move.token for move in handle.result.moves] == [2, 4, 4, 5]
    Console(quiet=True).results([(handle.result, "text")], None)
    found = json.loads(capsys.readouterr().out)
    assert found["token_s"][:2] == [0.0, 0.0]
    assert found["moves"][1] == {
        "token": 4,
        "epoch": 3,
        "reason": "lost",
        "device": "pi",
        "stages": [
            {"devices": ["laptop"], "shares": [1.0], "blocks": [0, 6], "window": 0},
            {"devices": ["old"], "shares": [1.0], "blocks": [6, 9], "window": 0},
            {"devices": ["laptop"], "shares": [1.0], "blocks": [9, 10], "window": 0},
        ],
        "pause_s": 0.0312,
        "moved_bytes": 0,
        "computed_again": 40,
    }
