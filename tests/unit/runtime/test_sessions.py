"""Whole sessions over loopback: every number of devices gives what the model in one piece gives."""

from __future__ import annotations

import numpy as np
import numpy_model as synthetic
import pytest

from llrun.generate import generate
from llrun.sampling import Sampling

NAMES = ["head", "anna", "bert", "cora"]


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, synthetic.VOCABULARY, length).tolist()


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [1, 7, 8, 61])
def test_greedy_tokens_equal_the_model_in_one_piece(cluster, count, length):
    ids = prompt(length)
    expected = synthetic.greedy(ids, 12)
    assert len(set(expected)) > 3
    with cluster(NAMES[:count]).session() as session:
        seen = []
        result = generate(session, ids, 12, Sampling(), lambda token: seen.append(token) or True)
    assert list(result.tokens) == expected == seen
    assert result.prompt_tokens == length
    assert sorted(result.devices) == sorted(NAMES[:count])


@pytest.mark.parametrize("count", [1, 3])
def test_logits_of_every_position(cluster, count):
    ids = prompt(29)
    with cluster(NAMES[:count]).session() as session:
        np.testing.assert_allclose(session.logits(ids), synthetic.reference(ids), rtol=1e-4, atol=1e-4)
