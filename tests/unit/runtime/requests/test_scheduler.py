"""Many conversations on one session: whose logits and errors they are."""

from __future__ import annotations

import threading

import numpy as np
import numpy_model as synthetic
import pytest
from asking import finish, prompt

from llrun.engine.stores import SequenceStore
from llrun.errors import RunError
from llrun.requests.conversation import Conversation, generate
from llrun.requests.request import Request
from llrun.requests.sampling import Sampling
from llrun.requests.scheduler import Scheduler
from llrun.wire.messages import StepsDone

NAMES = ["head", "anna", "bert", "cora"]


# --- logits are routed ---


@pytest.mark.parametrize("count", [1, 3])
def test_more_requests_than_there_is_room_for_wait_and_give_what_each_gives_alone(cluster, count):
    prompts = [prompt(1 + i % 13, seed=i) for i in range(70)]
    with cluster(NAMES[:count]).scheduler() as scheduler:
        handles = [scheduler.submit(Request(ids, 3)) for ids in prompts]
        scheduler.step()
        assert scheduler.session.sequences == 64
        tokens = [list(scheduler.run_until(handle).tokens) for handle in handles]
    assert tokens == [synthetic.greedy(ids, 3) for ids in prompts]


def test_requests_that_come_and_go_at_any_time_have_their_own_logits(cluster):
    """A request is submitted with each token of the others; prompts and tokens of many lengths mix."""
    sizes = [(30, 9), (1, 12), (17, 1), (8, 6), (61, 3), (2, 20), (9, 7)]
    prompts = [prompt(length, seed=length) for length, _ in sizes]
    handles, more = [], iter(range(1, len(sizes)))
    with cluster(NAMES[:3]).scheduler() as scheduler:

        def ask(index: int) -> None:
            handles.append(scheduler.submit(Request(prompts[index], sizes[index][1], sink=asks_next)))

        def asks_next(_: int) -> bool:
            index = next(more, None)
            if index is not None:
                ask(index)
            return True

        ask(0)
        finish(scheduler)
    assert [list(handle.result.tokens) for handle in handles] == [
        synthetic.greedy(ids, count) for ids, (_, count) in zip(prompts, sizes, strict=True)
    ]


def test_tokens_of_requests_that_began_apart_are_computed_in_one_pass(cluster):
    """Whoever has a token waits for those whose token is under way: from then on they go together."""
    passes: list[int] = []
    with cluster(NAMES[:1]).scheduler() as scheduler:
        heard = scheduler.session._heard

        def hear(device, message) -> None:
            if isinstance(message, StepsDone):
                passes.append(len(message.steps))
            heard(device, message)

        scheduler.session._heard = hear
        handles = [scheduler.submit(Request(prompt(5 + i, seed=i), 40)) for i in range(4)]
        finish(scheduler)
    assert all(len(handle.tokens) == 40 for handle in handles)
    assert passes.count(4) >= 30


def test_a_token_overtakes_the_waiting_chunks_of_another_prompt(cluster):
    """A conversation goes on while a long prompt, of which most waits here, is computed."""
    order: list[str] = []
    with cluster(NAMES[:3]).scheduler() as scheduler:
        talk = scheduler.submit(Request(prompt(2), 12, sink=lambda _: order.append("talk") or True))
        while not talk.tokens:
            scheduler.step()
        long = scheduler.submit(Request(prompt(240, seed=5), 1, sink=lambda _: order.append("long") or True))
        finish(scheduler)
    assert list(long.result.tokens) == synthetic.greedy(prompt(240, seed=5), 1)
    assert list(talk.result.tokens) == synthetic.greedy(prompt(2), 12)
    assert order.index("long") > 4


# --- errors are the request's own ---


def test_a_sequence_that_a_device_refuses_is_the_requests_error_alone(cluster, monkeypatch):
    """A worker that has less room than it said: others go on, and the devices that had room have it again."""
    workers = cluster(NAMES[:3])
    small = SequenceStore.open

    def two_at_most(self: SequenceStore, number: int, *after: object) -> str | None:
        mine = threading.current_thread().name == "worker bert"
        if mine and len(self._open) >= 2:
            self._newest = number
            return "2 sequences are open, and there is room for no more"
        return small(self, number, *after)

    monkeypatch.setattr(SequenceStore, "open", two_at_most)
    prompts = [prompt(4 + i, seed=i) for i in range(4)]
    with workers.scheduler() as scheduler:
        handles = [scheduler.submit(Request(ids, 5)) for ids in prompts]
        finish(scheduler)
        for ids, handle in zip(prompts[:2], handles[:2], strict=True):
            assert list(handle.result.tokens) == synthetic.greedy(ids, 5)
        for handle in handles[2:]:
            assert handle.result is None
            assert handle.error.code == "R402"
            assert str(handle.error) == (
                "error[R402]: device bert has no room for another conversation: 2 sequences are open, and there"
                " is room for no more"
            )
        with pytest.raises(RunError, match="device bert has no room"):
            scheduler.run_until(handles[3])
        assert len(scheduler.session._engine.sequences._open) == 0
        again = generate(scheduler, prompts[2], 5, Sampling(), lambda _: True)
        assert list(again.tokens) == synthetic.greedy(prompts[2], 5)
    assert workers.notes == []


def test_a_refused_conversation_can_ask_again(cluster, monkeypatch):
    full = [True]
    inner = SequenceStore.open
    monkeypatch.setattr(
        SequenceStore, "open", lambda self, *asked: "it is full" if full[0] else inner(self, *asked)
    )
    with cluster(NAMES[:2]).scheduler() as scheduler:
        talk = Conversation(scheduler)
        with pytest.raises(RunError, match="it is full"):
            talk.ask(prompt(3), 3, Sampling(), lambda _: True)
        full[0] = False
        assert list(talk.ask(prompt(3), 3, Sampling(), lambda _: True).tokens) == synthetic.greedy(
            prompt(3), 3
        )


def test_logits_that_are_no_numbers_fail_their_request_alone(cluster):
    """The model overflows for prompts that contain one token; the conversation it happened in goes on."""
    bad = 96

    def embed(ids, table):
        return np.where((ids == bad)[..., None], np.float32(np.nan), table[ids])

    parts = {name: synthetic.device(name, NAMES[:2], synthetic.library(t0=embed)) for name in NAMES[:2]}
    good = [[token % bad for token in prompt(6, seed=i)] for i in range(3)]
    with cluster(NAMES[:2], parts).scheduler() as scheduler:
        handles = [scheduler.submit(Request(ids, 6)) for ids in (*good, [1, 2, bad])]
        finish(scheduler)
        assert handles[-1].error.code == "R502"
        for ids, handle in zip(good, handles, strict=False):
            assert list(handle.result.tokens) == synthetic.greedy(ids, 6)


def test_bad_input_and_a_full_context_are_the_requests_own(cluster):
    with cluster(NAMES[:2]).scheduler() as scheduler:
        other = scheduler.submit(Request(prompt(3), 20))
        for request, code in ((Request([]), "R103"), (Request([97]), "R104"), (Request([1], 256), "R105")):
            with pytest.raises(RunError) as caught:
                scheduler.submit(request)
            assert caught.value.code == code
        talk = Conversation(scheduler)
        first = talk.submit(Request(prompt(200, seed=1), 1))
        beyond = talk.submit(Request(prompt(56, seed=2), 1))  # fits alone, not after the first
        third = talk.submit(Request(prompt(40, seed=3), 2))
        finish(scheduler)
        assert beyond.error.code == "R105"
        assert "201 earlier tokens + 56 prompt tokens + 1 new ones" in beyond.error.message
        history = [*prompt(200, seed=1), *first.result.tokens, *prompt(40, seed=3)]
        assert list(third.result.tokens) == synthetic.greedy(history, 2)
        assert list(other.result.tokens) == synthetic.greedy(prompt(3), 20)


def test_a_sinks_error_ends_its_request_alone_and_anything_else_reaches_the_driver(cluster):
    def refuses(_: int) -> bool:
        raise RunError("R106", "no such token")

    def interrupts(_: int) -> bool:
        raise KeyboardInterrupt

    with cluster(NAMES[:2]).scheduler() as scheduler:
        other = scheduler.submit(Request(prompt(3), 12))
        failed = scheduler.submit(Request(prompt(4), 12, sink=refuses))
        finish(scheduler)
        assert failed.error.code == "R106"
        assert list(other.result.tokens) == synthetic.greedy(prompt(3), 12)
        interrupted = scheduler.submit(Request(prompt(5), 12, sink=interrupts))
        other = scheduler.submit(Request(prompt(6), 12))
        with pytest.raises(KeyboardInterrupt):
            finish(scheduler)
        finish(scheduler)
        assert list(interrupted.result.tokens) == synthetic.greedy(prompt(5), 1)
        assert list(other.result.tokens) == synthetic.greedy(prompt(6), 12)


def test_requests_that_wait_are_bounded(cluster):
    with cluster(NAMES[:2]).session() as session:
        scheduler = Scheduler(session, max_waiting=3)
        handles = [scheduler.submit(Request(prompt(3), 2)) for _ in range(3)]
        with pytest.raises(RunError, match="3 requests wait already, no more are taken") as caught:
            scheduler.submit(Request(prompt(3), 2))
        assert caught.value.code == "R402"
        finish(scheduler)
        assert all(list(handle.result.tokens) == synthetic.greedy(prompt(3), 2) for handle in handles)
        assert list(scheduler.run_until(scheduler.submit(Request(prompt(3), 2))).tokens)


def test_a_request_that_open_conversations_leave_no_room_for_is_refused(cluster):
    with cluster(NAMES[:2]).scheduler() as scheduler:
        talks = [Conversation(scheduler) for _ in range(64)]
        for talk in talks:
            talk.submit(Request((), 0))
        finish(scheduler)
        waiting = scheduler.submit(Request(prompt(3), 2))
        with pytest.raises(RunError, match="room for 64 conversations, and as many are open"):
            scheduler.run_until(waiting)
        talks[7].close()
        result = scheduler.run_until(scheduler.submit(Request(prompt(3), 2)))
        assert list(result.tokens) == synthetic.greedy(prompt(3), 2)


def test_a_lost_session_ends_every_request(cluster):
    def sometimes(*arguments):
        if arguments[2][0, 0] == 16:  # the third chunk of a prompt
            raise RuntimeError("a kernel's complaint")
        return synthetic.mix(*arguments)

    broken = synthetic.device("bert", NAMES[:3], synthetic.library(t1=sometimes))
    with cluster(NAMES[:3], {"bert": broken}).scheduler(replaceable=False) as scheduler:
        handles = [scheduler.submit(Request(prompt(3), 20)), scheduler.submit(Request(prompt(20), 20))]
        with pytest.raises(RunError, match="a kernel's complaint"):
            finish(scheduler)
        assert all("a kernel's complaint" in handle.error.message for handle in handles)
        with pytest.raises(RunError, match="a kernel's complaint"):
            scheduler.submit(Request(prompt(3), 1))
