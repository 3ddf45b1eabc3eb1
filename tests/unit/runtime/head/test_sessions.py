"""Whole sessions over loopback: every number of devices gives what the model in one piece gives."""

from __future__ import annotations

import time

import msgspec
import numpy as np
import numpy_model as synthetic
import pytest

from llrun.device.library import Library
from llrun.errors import RunError
from llrun.faces.bench import Plan, check_plan, run_bench, table
from llrun.head.session import Session
from llrun.requests.conversation import Conversation, generate
from llrun.requests.request import Request
from llrun.requests.sampling import Sampling
from llrun.requests.scheduler import Scheduler
from llrun.wire.protocol import HEADER_BYTES
from llrun.wire.transport import Tcp

NAMES = ["head", "anna", "bert", "cora"]


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, synthetic.VOCABULARY, length).tolist()


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [1, 7, 8, 61])
def test_greedy_tokens_equal_the_model_in_one_piece(cluster, count, length):
    ids = prompt(length)
    expected = synthetic.greedy(ids, 12)
    assert len(set(expected)) > 3
    with cluster(NAMES[:count]).scheduler() as scheduler:
        seen = []
        result = generate(scheduler, ids, 12, Sampling(), lambda token: seen.append(token) or True)
    assert list(result.tokens) == expected == seen
    assert result.prompt_tokens == length
    assert sorted(result.devices) == sorted(NAMES[:count])


@pytest.mark.parametrize("count", [1, 3])
def test_logits_of_every_position(cluster, count):
    ids = prompt(29)
    with cluster(NAMES[:count]).session() as session:
        np.testing.assert_allclose(session.logits(ids), synthetic.reference(ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_many_sequences_in_flight_do_not_disturb_each_other(cluster, count):
    prompts = [prompt(length, seed=length) for length in (1, 5, 9, 17, 30)]
    with cluster(NAMES[:count]).scheduler() as scheduler:
        tokens = produced(scheduler, prompts, 6)
    assert tokens == [synthetic.greedy(ids, 6) for ids in prompts]


def produced(scheduler: Scheduler, prompts: list[list[int]], count: int) -> list[list[int]]:
    """What each prompt gives when all are asked at once."""
    handles = [scheduler.submit(Request(ids, count)) for ids in prompts]
    return [list(scheduler.run_until(handle).tokens) for handle in handles]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("sequences", [2, 5, 17])
def test_sequences_decoded_together_give_what_each_gives_alone(cluster, count, sequences):
    prompts = [prompt(1 + 5 * i % 23, seed=i) for i in range(sequences)]
    with cluster(NAMES[:count]).scheduler() as scheduler:
        found = produced(scheduler, prompts, 5)
    for ids, tokens in zip(prompts, found, strict=True):
        assert tokens == synthetic.greedy(ids, 5)


def test_every_device_computes_a_pass_as_one_and_its_logits_come_together(cluster):
    widths: list[int] = []
    inner = synthetic.library()

    def watched(x, *rest):
        widths.append(x.shape[1])
        return synthetic.mix_batch(x, *rest)

    library = Library({**inner.functions, "t1_batch": watched}, inner.wrap, inner.unwrap)
    parts = {name: synthetic.device(name, NAMES[:3], library) for name in NAMES[:3]}
    with cluster(NAMES[:3], parts).scheduler() as scheduler:
        talks = [Conversation(scheduler) for _ in range(5)]
        for talk in talks:
            talk.submit(Request((), 0))  # opened: what is asked then begins together
        while scheduler.step():
            pass
        handles = [talk.submit(Request(prompt(1, seed=i), 4)) for i, talk in enumerate(talks)]
        for handle in handles:
            scheduler.run_until(handle)
    assert widths == [5] * (4 * 4)  # four mixing blocks, four passes


def test_closing_forgets_what_has_not_been_computed(cluster):
    with cluster(NAMES[:3]).scheduler() as scheduler:
        session = scheduler.session
        long = [session.open() for _ in range(3)]
        for number in long:
            session.history(number).extend(prompt(200, seed=number))
            session.feed([number])
        for number in long:
            session.close_sequence(number)
        assert list(generate(scheduler, prompt(61), 4, Sampling(), lambda token: True).tokens) == (
            synthetic.greedy(prompt(61), 4)
        )


def test_a_conversation_goes_on_where_it_was(cluster):
    first, second = prompt(11, seed=1), prompt(13, seed=2)
    with cluster(NAMES[:3]).scheduler() as scheduler:
        talk = Conversation(scheduler)
        answer = talk.ask(first, 5, Sampling(), lambda token: True).tokens
        assert list(answer) == synthetic.greedy(first, 5)
        assert talk.used == len(first) + 5
        history = [*first, *answer, *second]
        assert list(talk.ask(second, 5, Sampling(), lambda token: True).tokens) == synthetic.greedy(
            history, 5
        )


def test_an_end_of_sequence_token_ends_and_is_the_last(cluster):
    ids = prompt(9)
    expected = synthetic.greedy(ids, 8)
    end = expected[3]
    model = msgspec.structs.replace(synthetic.record("head", ["head"]).model, eos_token_ids=(end,))
    part = synthetic.device("head", ["head"], model=model)
    with Session(part, Tcp(), {}, 5.0) as session:
        result = generate(Scheduler(session), ids, 8, Sampling(), lambda token: True)
    assert list(result.tokens) == expected[: expected.index(end) + 1]


def test_a_sink_may_end_a_request(cluster):
    with cluster(NAMES[:2]).scheduler() as scheduler:
        seen = []
        result = generate(
            scheduler, prompt(4), 50, Sampling(), lambda token: seen.append(token) or len(seen) < 3
        )
        assert len(result.tokens) == 3
        assert list(generate(scheduler, prompt(4), 3, Sampling(), lambda _: True).tokens) == list(
            result.tokens
        )


def test_a_seed_decides_the_tokens(cluster):
    with cluster(NAMES[:2]).scheduler() as scheduler:

        def tokens(seed: int) -> tuple[int, ...]:
            return generate(scheduler, prompt(4), 20, Sampling(1.5, seed=seed), lambda token: True).tokens

        assert tokens(1) == tokens(1) != tokens(2)


def test_figures_are_of_the_request_alone(cluster):
    with cluster(NAMES[:3]).scheduler() as scheduler:
        long = generate(scheduler, prompt(61), 10, Sampling(), lambda token: True)
        short = generate(scheduler, prompt(1), 1, Sampling(), lambda token: True)
    chunks, row = 8, HEADER_BYTES + synthetic.WIDTH * 4
    assert short.devices["head"].sent_bytes == short.devices["anna"].sent_bytes == row
    assert long.devices["anna"].sent_bytes == chunks * HEADER_BYTES + 61 * synthetic.WIDTH * 4 + 9 * row
    assert long.devices["bert"].sent_bytes == 10 * row
    for figures in long.devices.values():
        assert figures.compute_s > 0
        assert figures.wait_s > 0
        assert figures.peak_memory_bytes > 1 << 20
    assert short.tpot_s is None
    assert 0 < long.tpot_s < long.ttft_s + 10 * long.tpot_s


@pytest.mark.parametrize(
    ("ids", "wanted", "code", "reason"),
    [
        ([], 1, "R103", "empty"),
        ([1, 97], 1, "R104", "token 1 of the prompt is 97, the vocabulary has 97 ids"),
        ([-1], 1, "R104", "token 0 of the prompt is -1"),
        ([1] * 250, 7, "R105", "250 prompt tokens . 7 new ones are more than the context of 256"),
        ([1] * 256, None, "R105", "256 prompt tokens . 1 new ones"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(ids, wanted, code, reason):
    with Session(synthetic.device("head", ["head"]), Tcp(), {}, 5.0) as session:
        with pytest.raises(RunError, match=reason) as caught:
            generate(Scheduler(session), ids, wanted, Sampling(), lambda token: True)
        assert (caught.value.code, caught.value.exit_code) == (code, 2)
        assert session.measure()["head"].compute_s == 0


def test_the_context_can_be_filled_to_its_last_position(cluster):
    ids = prompt(250)
    with cluster(NAMES[:2]).scheduler() as scheduler:
        assert len(generate(scheduler, ids, None, Sampling(), lambda token: True).tokens) == 6


def test_logits_beyond_the_context_are_refused_before_they_reach_a_cache(cluster):
    with cluster(NAMES[:1]).session() as session, pytest.raises(RunError) as caught:
        session.logits(prompt(257))
    assert caught.value.code == "R105"


def test_a_device_that_fails_is_named_and_serves_on(cluster):
    calls, complaining = [], [True]

    def sometimes(*arguments):
        calls.append(1)
        if complaining and len(calls) >= 9:
            raise RuntimeError("a kernel's complaint")
        return synthetic.mix(*arguments)

    broken = synthetic.device("bert", NAMES[:3], synthetic.library(t1=sometimes))
    workers = cluster(NAMES[:3], {"bert": broken})
    with (
        workers.scheduler(replaceable=False) as scheduler,
        pytest.raises(RunError, match=r"device bert: .*a kernel's complaint"),
    ):
        generate(scheduler, prompt(3), 20, Sampling(), lambda token: True)
    complaining.clear()
    with workers.scheduler() as scheduler:
        result = generate(scheduler, prompt(3), 5, Sampling(), lambda token: True)
    assert list(result.tokens) == synthetic.greedy(prompt(3), 5)
    assert any("a kernel's complaint" in note for note in workers.notes)


def test_waiting_has_a_deadline(cluster):
    slow = synthetic.library(t1=lambda *arguments: time.sleep(2) or synthetic.mix(*arguments))
    workers = cluster(NAMES[:2], {"anna": synthetic.device("anna", NAMES[:2], slow)})
    with (
        workers.scheduler(timeout_s=0.3) as scheduler,
        pytest.raises(RunError, match=r"nothing came .* 0\.3 s .* on anna, head"),
    ):
        generate(scheduler, prompt(3), 5, Sampling(), lambda token: True)


def test_a_long_prompt_is_not_sent_faster_than_it_is_taken(cluster):
    """Chunks under way are bounded, whatever the prompt's length."""
    waiting = []
    workers = cluster(NAMES[:3])
    with workers.session() as session:
        release = session._feeding.release
        session._feeding.release = lambda: (release(), waiting.append(session._feeding.progress.under_way))[0]
        number = session.open()
        session.history(number).extend(prompt(240))
        session.feed([number])
        while not session.pop_logits():
            session.take()
    assert max(waiting) == 6
    assert len(waiting) > 20


def test_bench_rows(cluster):
    with cluster(NAMES[:3]).scheduler() as scheduler:
        rows = run_bench(scheduler, Plan(prompt=40, tokens=6, depth=10, repeats=2, sequences=3))
    assert [(row.test, row.depth, row.sequences, row.runs) for row in rows] == [
        ("pp40", 10, 3, 2),
        ("tg6", 10, 3, 2),
    ]
    assert all(row.tokens_per_s > 0 for row in rows)
    text = table(rows, "synthetic f32", 3)
    assert "| pp40 @ d10 |" in text
    assert len(text.splitlines()) == 4


def test_bench_that_does_not_fit():
    model = synthetic.record("head", ["head"]).model
    with pytest.raises(RunError, match=r"depth 200 \+ 128 tokens are more than the context of 256"):
        check_plan(Plan(128, 16, 200, 1, 1), model)
    with pytest.raises(RunError, match="nothing to measure"):
        check_plan(Plan(0, 0, 0, 1, 1), model)


def test_goodbye_is_no_failure(cluster):
    workers = cluster(NAMES)
    for _ in range(5):
        with workers.scheduler() as scheduler:
            generate(scheduler, prompt(3), 2, Sampling(), lambda token: True)
    time.sleep(0.3)
    assert workers.notes == []
