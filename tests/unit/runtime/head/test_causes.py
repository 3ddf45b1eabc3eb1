"""Which of several failures is the cause."""

from __future__ import annotations

from queue import SimpleQueue

import pytest

from llrun.errors import INTERNAL, RunError, lost
from llrun.head import controls
from llrun.head.controls import Failure, cause_of, failure_of
from llrun.wire.messages import Failed, Ready

EXPLAINED = ("bert", Failed("R501", "template t1 failed"))
MISSES_BERT = ("anna", Failed("R301", "device bert was lost: reset", "bert"))
MISSES_ANNA = ("cora", Failed("R301", "device anna was lost: it closed the connection", "anna"))
GONE_ANNA, GONE_BERT = lost("anna", "it closed the connection"), lost("bert", "reset")


@pytest.mark.parametrize(
    ("replies", "message"),
    [
        ([GONE_BERT, EXPLAINED], "device bert: template t1 failed"),
        ([MISSES_BERT, GONE_ANNA, EXPLAINED], "device bert: template t1 failed"),
        ([GONE_ANNA, MISSES_BERT, GONE_BERT], "device bert was lost: reset"),
        ([MISSES_ANNA, GONE_ANNA, MISSES_BERT], "device bert was lost: reset"),
        ([GONE_BERT], "device bert was lost: reset"),
        ([RunError("R501", "here", INTERNAL), GONE_ANNA], "here"),
    ],
)
def test_the_cause_is_found_whatever_is_heard_first(monkeypatch, replies, message):
    monkeypatch.setattr(controls, "GRACE_S", 0.02)
    queue: SimpleQueue = SimpleQueue()
    first, *rest = replies
    for reply in rest:
        queue.put(reply)
    failure = failure_of(first)
    assert isinstance(failure, Failure)
    assert cause_of(failure, queue).message == message


def test_other_replies_are_no_failures():
    assert failure_of(("anna", Ready())) is None
