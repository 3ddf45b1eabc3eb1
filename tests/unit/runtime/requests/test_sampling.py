"""Sampling: greedy is the lowest of the likeliest; the rest draws from exactly the stated distribution."""

from __future__ import annotations

import numpy as np
import pytest

from llrun.errors import RunError
from llrun.requests.sampling import (
    Penalties,
    Sampling,
    choose,
    distribution,
    generator,
    log_probabilities,
    penalised,
)

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))


def test_greedy_takes_the_lowest_id_of_equals():
    assert choose(np.array([1, 5, 5, 2], np.float32), Sampling(), generator(Sampling())) == 1


def test_distribution_is_the_softmax_sorted():
    ids, weights = distribution(LOGITS, Sampling(temperature=1.0))
    assert ids.tolist() == [1, 3, 2, 0]
    np.testing.assert_allclose(weights, [0.4, 0.3, 0.2, 0.1], rtol=1e-6)


def test_temperature_sharpens():
    _, weights = distribution(LOGITS, Sampling(temperature=0.5))
    np.testing.assert_allclose(weights, np.array([16, 9, 4, 1]) / 30, rtol=1e-6)


@pytest.mark.parametrize(("top_p", "count"), [(0.39, 1), (0.41, 2), (0.69, 2), (0.71, 3), (1.0, 4)])
def test_top_p_is_the_smallest_set_that_reaches_p(top_p, count):
    ids, weights = distribution(LOGITS, Sampling(temperature=1.0, top_p=top_p))
    assert len(ids) == count
    assert weights.sum() == pytest.approx(1)


def test_top_k_then_top_p():
    ids, _ = distribution(LOGITS, Sampling(temperature=1.0, top_k=2, top_p=0.5))
    assert ids.tolist() == [1]
    assert distribution(LOGITS, Sampling(temperature=1.0, top_k=3))[0].tolist() == [1, 3, 2]


def test_frequencies_and_seed():
    sampling = Sampling(temperature=1.0, seed=7)
    random = generator(sampling)
    drawn = [choose(LOGITS, sampling, random) for _ in range(4000)]
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 4000, [0.1, 0.4, 0.2, 0.3], atol=0.03)
    again = generator(sampling)
    assert drawn[:50] == [choose(LOGITS, sampling, again) for _ in range(50)]
    other = generator(Sampling(temperature=1.0, seed=8))
    assert drawn[:50] != [choose(LOGITS, sampling, other) for _ in range(50)]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_numbers_are_an_error(bad):
    with pytest.raises(RunError, match="logit 2") as caught:
        choose(np.array([0, 1, bad, 2], np.float32), Sampling(), generator(Sampling()))
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": -1}, "top-k"),
        ({"top_p": 0.0}, "top-p"),
        ({"top_p": 1.1}, "top-p"),
        ({"seed": -1}, "seed"),
    ],
)
def test_senseless_options_are_refused_by_name(options, name):
    with pytest.raises(RunError, match=name) as caught:
        Sampling(**options)
    assert caught.value.exit_code == 2


def test_penalties_are_taken_off_what_was_produced():
    logits = np.array([1, 2, 3, 4], np.float32)
    found = penalised(logits, [3, 1, 3, 3], Penalties(presence=0.5, frequency=0.25))
    np.testing.assert_allclose(found, [1, 2 - 0.75, 3, 4 - 1.25])
    assert logits.tolist() == [1, 2, 3, 4]
    assert penalised(logits, [3], Penalties()) is logits
    assert penalised(logits, [], Penalties(1, 1)) is logits


@pytest.mark.parametrize("bad", [{"presence": 2.1}, {"frequency": -2.1}, {"frequency": float("nan")}])
def test_penalties_have_bounds(bad):
    with pytest.raises(RunError, match=f"{next(iter(bad))} penalty is"):
        Penalties(**bad)


def test_log_probabilities_are_of_the_logits_as_they_are():
    own, likeliest = log_probabilities(LOGITS + 100, 2, 3)
    assert own == pytest.approx(np.log(0.2), abs=1e-5)
    assert [token for token, _ in likeliest] == [1, 3, 2]
    np.testing.assert_allclose([value for _, value in likeliest], np.log([0.4, 0.3, 0.2]), atol=1e-5)
    assert log_probabilities(LOGITS, 0, 0)[1] == []
