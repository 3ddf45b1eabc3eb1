"""Guesses at tokens: what is guessed, when it pays, and that no text is another for it."""

from __future__ import annotations

from dataclasses import replace

import numpy_model as synthetic
import pytest
from asking import finish, prompt
from guessing import Oracle

from llrun.requests.conversation import Conversation
from llrun.requests.request import Request, keep_on
from llrun.requests.sampling import Sampling
from llrun.requests.speculate import FIRST_MOST, GAIN, MOST, PROBE, Drafter

NAMES = ["head", "anna", "bert", "cora"]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def passed(drafter: Drafter, clock: Clock, seconds: float, drafted: int = 0, kept: int = 0) -> None:
    drafter.sent()
    clock.now += seconds
    drafter.answered(drafted, kept)


def ready(row_s: float = 0.0) -> tuple[Drafter, Clock]:
    """A drafter that has seen a token take 1 s and a further row `row_s`."""
    clock = Clock()
    drafter = Drafter(clock)
    passed(drafter, clock, 1.0)
    drafter.draft([9, 8, 9, 8], 1)
    passed(drafter, clock, 1 + row_s, 1, 1)
    drafter._seen, drafter._after = 0, {}
    return drafter, clock


def test_what_followed_the_same_tokens_last_is_guessed():
    drafter, _ = ready()
    assert drafter.draft([1, 2, 3, 4, 5, 6, 1, 2, 7, 8, 0, 1, 2], 3) == [7, 8, 0]


def test_the_longest_equal_end_decides():
    drafter, _ = ready()
    assert drafter.draft([5, 1, 2, 3, 9, 1, 2, 4, 9, 5, 1, 2], 1) == [3]


def test_a_text_that_repeats_itself_is_guessed_to_go_on_so():
    drafter, _ = ready()
    assert drafter.draft([1, 2, 3, 1, 2, 3, 1, 2], 4) == [3, 1, 2, 3]


@pytest.mark.parametrize("ids", [[], [4], [1, 2, 3, 4], [1, 2, 1, 3]])
def test_nothing_is_guessed_of_what_was_not_there(ids: list[int]):
    drafter, _ = ready()
    assert drafter.draft(ids, 8) == []


def test_nothing_is_guessed_before_a_token_was_timed_nor_where_there_is_no_room():
    assert Drafter(Clock()).draft([1, 2, 1, 2], 8) == []
    assert ready()[0].draft([1, 2, 1, 2], 0) == []


def test_drafts_grow_while_guesses_are_right_and_end_where_they_are_wrong():
    drafter, clock = ready()
    ids, lengths = [1, 2, 3, 4] * 4, []
    for _ in range(4):
        drafted = drafter.draft(ids, MOST)
        lengths.append(len(drafted))
        passed(drafter, clock, 1.0, len(drafted), len(drafted))
    assert lengths[0] <= FIRST_MOST < lengths[-1] == MOST
    assert lengths == sorted(lengths)
    for _ in range(60):
        drafted = drafter.draft(ids, MOST)
        passed(drafter, clock, 1.0 + 0.3 * len(drafted), len(drafted), 0)
    asked = [len(drafter.draft(ids, MOST)) for _ in range(2 * PROBE)]
    assert (sum(asked), max(asked)) == (2, 1)  # now and then one, to see whether that has changed


def test_a_pass_with_guesses_that_takes_as_long_as_its_tokens_alone_is_not_worth_it():
    drafter, _ = ready(row_s=1.0)
    assert drafter.draft([1, 2, 3, 4, 1, 2, 3, 4], MOST) == []
    assert GAIN > 1


def test_a_pass_that_a_new_prompt_came_in_between_is_not_timed():
    drafter, clock = ready()
    drafter.sent()
    clock.now += 1000.0
    drafter.begin()
    drafter.answered(0, 0)
    assert drafter._single_s == 1.0


# --- with the whole runtime ---


@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize("wrong", [0.0, 0.3, 1.0])
def test_tokens_are_those_without_guesses(cluster, guesses, count, wrong):
    ids = prompt(11, seed=2)
    expected = synthetic.greedy(ids, 60)
    oracle = Oracle(expected, len(ids), wrong)
    guesses(oracle)
    with cluster(NAMES[:count]).scheduler(speculate=True) as scheduler:
        result = scheduler.run_until(scheduler.submit(Request(ids, 60)))
        assert scheduler.session.present.tokens == 60
    assert list(result.tokens) == expected
    assert result.guessed.tokens == sum(oracle.drafted)
    assert result.guessed.right == 59 - len(oracle.drafted)  # the first is the prompt's
    passes = len(oracle.drafted)
    assert sum(oracle.drafted) > 30
    assert passes < 25 if wrong == 0 else passes <= 59


@pytest.mark.parametrize("seed", range(4))
def test_tokens_that_are_drawn_are_those_without_guesses(cluster, guesses, seed):
    ids, sampling = prompt(9, seed=seed), Sampling(temperature=1.3, top_p=0.9, seed=seed)
    request = Request(ids, 50, sampling)
    with cluster(NAMES[:3]).scheduler(speculate=True) as scheduler:
        alone = scheduler.run_until(scheduler.submit(replace(request))).tokens
        oracle = Oracle(alone, len(ids), 0.2, seed)
        guesses(oracle)
        assert scheduler.run_until(scheduler.submit(replace(request))).tokens == alone
    assert sum(oracle.drafted) > 20


def test_a_request_ends_within_what_was_guessed_and_its_conversation_goes_on(cluster, guesses):
    first, second = prompt(6, seed=1), prompt(4, seed=5)
    whole = synthetic.greedy(first, 20)
    for stop in range(1, 20):
        took: list[int] = []

        def sink(token: int, took: list[int] = took, stop: int = stop) -> bool:
            took.append(token)
            return len(took) < stop

        guesses(lambda ids, most: whole[len(ids) - 6 :][: min(7, most)])
        with cluster(NAMES[:3]).scheduler(speculate=True) as scheduler:
            talk = Conversation(scheduler)
            assert list(talk.ask(first, 20, Sampling(), sink=sink).tokens) == whole[:stop]
            guesses(lambda ids, most: [])
            after = talk.ask(second, 8, Sampling(), keep_on).tokens
        assert list(after) == synthetic.greedy([*first, *whole[:stop], *second], 8)


def test_of_several_requests_nothing_is_guessed_while_they_run_together(cluster, guesses):
    prompts = [prompt(5, seed=7), prompt(8, seed=8)]
    expected = [synthetic.greedy(ids, count) for ids, count in zip(prompts, (40, 10), strict=True)]
    oracle = Oracle(expected[0], 5, 0.1)
    guesses(oracle)
    with cluster(NAMES[:3]).scheduler(speculate=True) as scheduler:
        handles = [scheduler.submit(Request(ids, n)) for ids, n in zip(prompts, (40, 10), strict=True)]
        finish(scheduler)
    assert [list(handle.result.tokens) for handle in handles] == expected
    assert 0 < len(oracle.drafted) <= 30


@pytest.mark.parametrize("at", range(3, 15))
def test_a_request_that_comes_while_another_has_guesses_changes_neither(cluster, guesses, at: int):
    first, second = prompt(5, seed=7), prompt(19, seed=8)
    expected = [synthetic.greedy(first, 40), synthetic.greedy(second, 12)]
    guesses(Oracle(expected[0], len(first), 0.1, at))
    handles, took = [], []
    with cluster(NAMES[:3]).scheduler(speculate=True) as scheduler:

        def sink(token: int) -> bool:
            took.append(token)
            if len(took) == at:
                handles.append(scheduler.submit(Request(second, 12)))
            return True

        handles.append(scheduler.submit(Request(first, 40, sink=sink)))
        finish(scheduler)
    assert [list(handle.result.tokens) for handle in handles] == expected
    assert handles[0].result.guessed.right > 0
