"""Requests that end early, and what each request costs."""

from __future__ import annotations

import threading

import numpy_model as synthetic
import pytest
from asking import finish, prompt

from llrun.requests.conversation import Conversation
from llrun.requests.request import Request
from llrun.requests.sampling import Sampling
from llrun.wire.protocol import HEADER_BYTES

NAMES = ["head", "anna", "bert", "cora"]


# --- cancelling ---


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_conversation_goes_on_after_a_cancelled_answer(cluster, count, after):
    """Cancelled with `after` tokens there and, where there is one, the next under way."""
    first, second = prompt(11, seed=1), prompt(13, seed=2)
    with cluster(NAMES[:count]).scheduler() as scheduler:
        talk = Conversation(scheduler)
        handle = talk.submit(Request(first, 50))
        while len(handle.tokens) < after:
            scheduler.step()
        handle.cancel()
        result = scheduler.run_until(handle)
        assert result.cancelled
        assert list(result.tokens) == synthetic.greedy(first, after)
        said = [*(first if after else ()), *result.tokens]
        assert talk.used == len(said)
        answer = talk.ask(second, 6, Sampling(), lambda _: True)
        assert not answer.cancelled
        assert list(answer.tokens) == synthetic.greedy([*said, *second], 6)


def test_nobody_waits_for_the_token_of_a_cancelled_answer_that_never_went(cluster):
    """Cancelled while nothing is fed, as when blocks move: no logits are due, and another conversation goes on."""
    with cluster(NAMES[:3]).scheduler() as scheduler:
        one, other = Conversation(scheduler), Conversation(scheduler)
        handle = one.submit(Request(prompt(5), 50))
        while len(handle.tokens) < 2:
            scheduler.step()
        scheduler.session._feeding.held = True
        while not scheduler.session._feeding._waiting:
            scheduler.step()
        handle.cancel()
        assert scheduler.run_until(handle).cancelled
        scheduler.session._feeding.held = False
        said = other.ask(prompt(7), 6, Sampling(), lambda _: True)
        assert list(said.tokens) == synthetic.greedy(prompt(7), 6)


@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize("steps", [2, 6, 14])
def test_a_conversation_goes_on_after_a_cancelled_prompt(cluster, count, steps):
    """Cancelled between a long prompt's chunks: the rest goes with what is asked next."""
    first, second = prompt(180, seed=1), prompt(9, seed=2)
    with cluster(NAMES[:count]).scheduler() as scheduler:
        talk = Conversation(scheduler)
        talk.ask(prompt(3), 1, Sampling(), lambda _: True)
        handle = talk.submit(Request(first, 50))
        for _ in range(steps):
            scheduler.step()
        history = scheduler.session.history(0)
        handle.cancel()
        assert scheduler.run_until(handle).tokens == ()
        assert 0 < history.fed < len(history) == talk.used == 184
        assert history.ids == [*prompt(3), *synthetic.greedy(prompt(3), 1), *first]
        assert list(talk.ask(second, 4, Sampling(), lambda _: True).tokens) == synthetic.greedy(
            [*history.ids[:184], *second], 4
        )


def test_cancelling_one_request_leaves_the_others_and_its_room(cluster):
    with cluster(NAMES[:3]).scheduler() as scheduler:
        prompts = [prompt(5, seed=i) for i in range(66)]
        handles = [scheduler.submit(Request(ids, 8)) for ids in prompts]
        while not handles[0].tokens:
            scheduler.step()
        cancelled = [handles[i] for i in (0, 17, 63, 65)]  # the last of them waits for room
        for handle in cancelled:
            handle.cancel()
        finish(scheduler)
        assert all(handle.result.cancelled and len(handle.result.tokens) < 8 for handle in cancelled)
        for ids, handle in zip(prompts, handles, strict=True):
            assert list(handle.result.tokens) == synthetic.greedy(ids, 8)[: len(handle.result.tokens)]
            assert len(handle.result.tokens) == 8 or handle in cancelled
        assert len(scheduler.session._engine.sequences._open) == 0


@pytest.mark.parametrize("count", [1, 3])
def test_a_token_that_waits_for_a_cancelled_requests_goes_on(cluster, count):
    """Whoever is cancelled, whenever: the others' tokens wait for nobody who is gone."""
    with cluster(NAMES[:count]).scheduler() as scheduler:
        for steps in range(12):
            handles = [scheduler.submit(Request(prompt(2 + 9 * i, seed=i), 7)) for i in range(3)]
            while not handles[0].tokens:
                scheduler.step()
            for _ in range(steps):
                scheduler.step()
            handles[steps % 3].cancel()
            finish(scheduler)
            for i in {0, 1, 2} - {steps % 3}:
                assert list(handles[i].result.tokens) == synthetic.greedy(prompt(2 + 9 * i, seed=i), 7)


def test_cancel_wakes_a_driver_that_waits(cluster):
    """From another thread, while a device computes: the request ends before the device has."""
    computing, may_end = threading.Event(), threading.Event()

    def slow(*arguments):
        computing.set()
        assert may_end.wait(20)
        return synthetic.mix(*arguments)

    slowed = synthetic.device("anna", NAMES[:2], synthetic.library(t1=slow))
    with cluster(NAMES[:2], {"anna": slowed}).scheduler() as scheduler:
        handle = scheduler.submit(Request(prompt(3), 5))

        def cancels() -> None:
            assert computing.wait(20)
            handle.cancel()

        threading.Thread(target=cancels).start()
        while not handle.cancelled:
            scheduler.step()
        may_end.set()
        assert scheduler.run_until(handle).tokens == ()


def test_submitting_from_another_thread_wakes_a_driver_that_waits(cluster):
    with cluster(NAMES[:2]).scheduler() as scheduler:
        handles = []
        asks = threading.Timer(0.1, lambda: handles.append(scheduler.submit(Request(prompt(3), 3))))
        asks.start()
        while not (handles and handles[0].done):
            scheduler.step(wait=True)
        assert list(handles[0].result.tokens) == synthetic.greedy(prompt(3), 3)
        assert not scheduler.step()


# --- figures are of the request ---


def test_figures_of_requests_together_add_up_to_the_sessions(cluster):
    with cluster(NAMES[:3]).scheduler() as scheduler:
        handles = [scheduler.submit(Request(prompt(3 + 9 * i, seed=i), 4 + i)) for i in range(5)]
        finish(scheduler)
        totals = scheduler.session.measure()
    for name, total in totals.items():
        spent = [handle.result.devices[name] for handle in handles]
        assert sum(figures.sent_bytes for figures in spent) == total.sent_bytes
        assert sum(figures.compute_s for figures in spent) == pytest.approx(total.compute_s, rel=1e-6)
        assert 0 < sum(figures.wait_s for figures in spent) <= total.wait_s
        assert all(figures.compute_s > 0 for figures in spent)


def test_a_request_is_charged_for_its_own_steps_whatever_runs_beside_it(cluster):
    """The longer prompt's tensors are its own: bytes of chunks, a share of the frames of rows."""
    with cluster(NAMES[:3]).scheduler() as scheduler:
        long = scheduler.submit(Request(prompt(61), 1))
        short = scheduler.submit(Request(prompt(2, seed=1), 1))
        finish(scheduler)
    row = synthetic.WIDTH * 4
    assert long.result.devices["anna"].sent_bytes == 8 * HEADER_BYTES + 61 * row
    assert short.result.devices["anna"].sent_bytes == HEADER_BYTES + 2 * row


def test_steps_of_a_cancelled_request_are_not_charged_to_the_next(cluster):
    """Chunks that were under way when their request was cancelled are done while the next one runs."""
    with cluster(NAMES[:3]).scheduler() as scheduler:
        talk = Conversation(scheduler)
        cancelled = talk.submit(Request(prompt(180), 5))
        while cancelled.state != "running":
            scheduler.step()
        cancelled.cancel()
        result = scheduler.run_until(talk.submit(Request(prompt(9, seed=2), 1)))
        history = scheduler.session.history(0)
        fed = 6 * synthetic.CHUNK  # two chunks a device
        rest = len(history) - 1 - fed
    assert rest == 180 + 9 - fed
    frames = -(-rest // synthetic.CHUNK)
    assert result.devices["anna"].sent_bytes == frames * HEADER_BYTES + rest * synthetic.WIDTH * 4


def test_idle_time_before_a_request_is_not_charged(cluster):
    """A device that waited for a conversation's next line did not wait for its answer."""
    with cluster(NAMES[:3]).scheduler() as scheduler:
        talk = Conversation(scheduler)
        talk.ask(prompt(3), 2, Sampling(), lambda _: True)
        threading.Event().wait(0.5)
        handle = talk.submit(Request(prompt(2), 2))
        result = scheduler.run_until(handle)
    took_s = handle.times[-1] - handle.submitted_at
    for figures in result.devices.values():
        assert 0 < figures.wait_s < took_s + 0.1
        assert figures.compute_s < took_s + 0.1
