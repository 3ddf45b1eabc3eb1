"""Requests that go on from what earlier ones left in the caches: the same tokens, less computed, no more memory."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import numpy_model as synthetic
import pytest

from llrun.head.options import Balancing
from llrun.requests.prefixes import LEAST_TOKENS, shared
from llrun.requests.request import Request
from llrun.requests.sampling import Sampling
from llrun.requests.scheduler import Scheduler

NAMES = ["head", "anna", "bert"]
KEPT = 2 * synthetic.CONTEXT


def prompt(length: int, seed: int = 0) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(1, synthetic.VOCABULARY, length)]


@contextmanager
def keeping(cluster, tokens: int = KEPT, names: list[str] = NAMES, slots: int | None = None):
    with cluster(names).session() as session:
        yield Scheduler(session, slots=slots, kept=tokens)


def answer(scheduler: Scheduler, ids: list[int], count: int = 6, **fields: object) -> tuple[list[int], int]:
    """The tokens, and how many of the prompt's were there."""
    handle = scheduler.submit(Request(ids, count, **fields))
    tokens = list(scheduler.run_until(handle).tokens)
    return tokens, handle.reused


def test_a_conversation_that_is_sent_whole_computes_what_is_new(cluster):
    with keeping(cluster) as scheduler:
        ids = prompt(40)
        for turn in range(4):
            before = len(ids)
            tokens, reused = answer(scheduler, ids)
            assert tokens == synthetic.greedy(ids, 6)
            assert reused == (0 if turn == 0 else before - 6)  # the last token of an answer is never computed
            ids += [*tokens, *prompt(5, turn)]


@pytest.mark.parametrize("common", [LEAST_TOKENS - 1, LEAST_TOKENS, 23, 24, 39, 40])
def test_what_differs_behind_the_prefix_makes_no_difference(cluster, common):
    """Chunks are of 8: a prefix ends within one, and at its end."""
    first, other = prompt(40, 1), prompt(30, 2)
    second = [*first[:common], 96 if first[common:] != [96] else 95, *other]
    if common < len(first):
        second[common] = first[common] % 95 + 1
    with keeping(cluster) as scheduler:
        assert answer(scheduler, first)[0] == synthetic.greedy(first, 6)
        tokens, reused = answer(scheduler, second)
        assert reused == (common if common >= LEAST_TOKENS else 0)
        assert tokens == synthetic.greedy(second, 6)


def test_the_same_prompt_again_computes_one_token_and_draws_the_same(cluster):
    ids, sampling = prompt(50, 3), Sampling(1.5, seed=9)
    with keeping(cluster) as scheduler:
        alone = answer(scheduler, ids, 12, sampling=sampling)
        assert alone[1] == 0
        assert answer(scheduler, ids, 12, sampling=sampling) == (alone[0], 49)


def test_of_several_the_longest_is_gone_on_from(cluster):
    base, ends = prompt(30, 4), [prompt(20, seed) for seed in (5, 6, 7)]
    with keeping(cluster) as scheduler:
        handles = [scheduler.submit(Request([*base, *end], 4)) for end in ends]
        for handle, end in zip(handles, ends, strict=True):
            assert list(scheduler.run_until(handle).tokens) == synthetic.greedy([*base, *end], 4)
        ids = [*base, *ends[1], 3, 4]
        assert answer(scheduler, ids) == (synthetic.greedy(ids, 6), 50)
        assert answer(scheduler, [*base, 9, 9])[1] == 30


def held(scheduler: Scheduler) -> int:
    """Sequences that the head's own device has open."""
    return len(scheduler.session._engine.sequences.numbers)


def test_no_more_is_held_than_may_be(cluster):
    with keeping(cluster, tokens=130) as scheduler:
        for seed in range(6):
            ids = prompt(50, 10 + seed)
            assert answer(scheduler, ids)[0] == synthetic.greedy(ids, 6)
            parked = scheduler.session.parked
            assert sum(len(each.ids) for each in parked.values()) <= 130
            assert len(parked) == held(scheduler) == min(seed + 1, 2)
        running: list[int] = []

        def sink(_: int) -> bool:
            kept = sum(len(each.ids) for each in scheduler.session.parked.values())
            running.append(kept)
            return True

        answer(scheduler, prompt(20, 30), 100, sink=sink)
        assert running[0] > 0
        assert running[-1] == 0  # those that run need the room


def test_what_is_kept_takes_nobodys_slot(cluster):
    with keeping(cluster, tokens=64 * synthetic.CONTEXT) as scheduler:
        for seed in range(scheduler.session.sequences):
            answer(scheduler, prompt(LEAST_TOKENS + 1, 100 + seed), 2)
        assert held(scheduler) == scheduler.session.sequences
        handles = [scheduler.submit(Request(prompt(20, 300 + i), 3)) for i in range(70)]
        for i, handle in enumerate(handles):
            assert list(scheduler.run_until(handle).tokens) == synthetic.greedy(prompt(20, 300 + i), 3)


def test_what_was_cancelled_or_failed_or_is_short_is_not_kept(cluster):
    with keeping(cluster) as scheduler:
        handle = scheduler.submit(Request(prompt(60, 8), 50, sink=lambda _: handle.cancel() or True))
        scheduler.run_until(handle)
        answer(scheduler, prompt(5), 4)
        while scheduler.step():
            pass
        assert scheduler.session.parked == {}
        assert held(scheduler) == 0


def test_without_a_word_nothing_is_kept(cluster):
    with keeping(cluster, tokens=0) as scheduler:
        answer(scheduler, prompt(40))
        assert scheduler.session.parked == {}
        assert answer(scheduler, prompt(40))[1] == 0


def test_a_device_that_has_lost_what_it_held_costs_nobody_an_answer(cluster):
    """Whatever the reason, the request begins anew."""
    with keeping(cluster, names=NAMES[:1]) as scheduler:
        ids = prompt(40, 9)
        answer(scheduler, ids)
        [number] = scheduler.session.parked
        scheduler.session._engine.sequences.get(number).frontier[:] = [
            10 for _ in scheduler.session._engine.sequences.get(number).frontier
        ]
        assert answer(scheduler, [*ids, 5]) == (synthetic.greedy([*ids, 5], 6), 0)
        assert answer(scheduler, [*ids, 5])[1] == 40
        assert held(scheduler) == 1


def test_with_copies_on_their_way_nothing_is_kept(cluster):
    made = cluster(NAMES)
    with made.session() as session:
        session._mirrored = Balancing("off", mirror=True).mirror
        scheduler = Scheduler(session, kept=KEPT)
        answer(scheduler, prompt(40))
        assert session.parked == {}


@pytest.mark.parametrize(
    ("one", "other", "count"),
    [
        ([], [], 0),
        ([1], [2], 0),
        ([1, 2], [1, 2], 2),
        ([1, 2, 3], [1, 2], 2),
        ([1, 2, 9, 4], [1, 2, 3, 4], 2),
    ],
)
def test_shared(one, other, count):
    assert shared(one, other) == count
    many = list(range(1000))
    for at in range(0, 1000, 37):
        assert shared(many, [*many[:at], -1, *many[at + 1 :]]) == at
