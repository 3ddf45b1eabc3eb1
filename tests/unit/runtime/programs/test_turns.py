"""How long a token takes where blocks come from disk: what is read in the others' turns, and what is waited for."""

from __future__ import annotations

from math import inf

import pytest

from llrun.programs.turns import Turn, token_seconds


def streamed(device: str, count: int, computing_s: float, loading_s: float) -> Turn:
    return Turn(device, [(computing_s, loading_s)] * count)


def test_without_streaming_it_is_the_sum() -> None:
    turns = [Turn("a", [(1.0, 0.0), (2.0, 0.0)]), Turn("", [(4.0, 0.0)])]
    assert token_seconds(turns, {"a": 0}, 0.5) == 7.5
    assert token_seconds([Turn("a", [(inf, 1.0)])], {"a": 2}, 0.0) == inf


def test_a_device_alone_takes_the_longer_of_reading_and_computing() -> None:
    assert token_seconds([streamed("a", 10, 0.1, 1.0)], {"a": 3}, 0.0) == pytest.approx(10.0)
    assert token_seconds([streamed("a", 10, 1.0, 0.1)], {"a": 3}, 0.0) == pytest.approx(10.0)


def test_a_ring_of_one_reads_nothing_ahead() -> None:
    assert token_seconds([streamed("a", 10, 1.0, 0.5)], {"a": 1}, 0.0) == pytest.approx(15.0)


def test_in_a_long_run_the_ring_alone_is_read_while_others_have_their_turn() -> None:
    """Three of ten blocks are there when the turn comes, as long as the other's turn lasts."""
    turns = [streamed("a", 10, 0.0, 1.0), streamed("b", 10, 0.0, 1.0)]
    assert token_seconds(turns, {"a": 3, "b": 3}, 0.0) == pytest.approx(14.0)


def test_in_runs_as_long_as_the_ring_all_is_read_in_the_turns_of_others() -> None:
    turns = [streamed(name, 2, 0.0, 1.0) for _ in range(5) for name in "ab"]
    assert token_seconds(turns, {"a": 3, "b": 3}, 0.0) == pytest.approx(10.0)


def test_messages_are_time_to_read_in() -> None:
    assert token_seconds([streamed("a", 2, 0.0, 1.0)], {"a": 3}, 2.0) == pytest.approx(2.0)
    assert token_seconds([streamed("a", 2, 0.0, 1.0)], {"a": 3}, 3.0) == pytest.approx(3.0)


def test_a_group_reads_nothing_ahead() -> None:
    turns = [Turn("", [(1.0, 0.0)]), streamed("a", 4, 0.5, 1.0)]
    assert token_seconds(turns, {"a": 3}, 0.0) == pytest.approx(4.0)
