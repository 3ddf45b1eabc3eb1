"""Whole models give the same bits for a token however it comes: in one prompt, in a prompt cut anywhere, alone, or
beside other sequences' tokens. So computing a lost cache again, and answering others meanwhile, changes no text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from llcompile.graph import build_graph
from llcompile.ir.graph import Graph
from tests.models import loaded
from tests.unit.lower.harness import Library, runnable

N = 141  # more than one tile of keys
CUTS = ([128, 13], [1, 30, 1, 1, 97, 11], [63] + [1] * 6 + [72])
ONE_BY_ONE = [1] * N
SLOTS = (2, 0, 1)

# Every format of weights, of caches, and every family; attention does not know of the weights' format.
CASES = [
    ("llama", "f32", "f32"),
    ("llama", "q4", "q8"),
    ("gpt2", "f16", "q8"),
    ("gemma3", "q8", "f16"),
]

State = list[list[np.ndarray]]  # the caches of each block


@dataclass(frozen=True)
class Whole:
    """A model's blocks, compiled, with drawn weights."""

    graph: Graph
    library: Library

    def caches(self) -> State:
        return [
            self.library.caches(block.template, slots=3)
            if self.graph.templates[block.template].caches
            else []
            for block in self.graph.blocks
        ]

    def step(
        self, mode: str, ids: np.ndarray, at: np.ndarray, state: State, slots: Sequence[int]
    ) -> np.ndarray:
        """The logits (n, vocabulary) of n tokens at the positions `at`."""
        tensors = {"input_ids": ids[None], "position_ids": at[None]}
        given = self.graph.positions
        if given is not None:
            made = self._call(given.id, mode, [at[None]], [], ())
            tensors |= zip((spec.name for spec in given.outputs), made, strict=True)
        for block, caches in zip(self.graph.blocks, state, strict=True):
            made = self._call(block.template, mode, [tensors[name] for name in block.inputs], caches, slots)
            tensors |= zip(block.outputs, made, strict=True)
        return tensors["logits"][0]

    def _call(
        self, id: str, mode: str, inputs: list[np.ndarray], caches: list[np.ndarray], slots: Sequence[int]
    ) -> list[np.ndarray]:
        function = "prefill" if mode == "batch" and not caches else mode
        return self.library.call(id, function, inputs, caches, slots)

    def fed(self, ids: np.ndarray, pieces: Sequence[int], mode: str = "prefill") -> list[np.ndarray]:
        """The logits of all tokens, fed in `pieces`, and what then is in slot 2 of every cache."""
        state, logits, start = self.caches(), [], 0
        for size in pieces:
            at = np.arange(start, start + size)
            logits.append(self.step(mode, ids[at], at, state, SLOTS[:1]))
            start += size
        return _found(logits, state)

    def fed_beside_others(self, ids: np.ndarray) -> list[np.ndarray]:
        """As `fed`, each token with one of each of two other sequences: one shorter, one that came later."""
        state, logits, behind = self.caches(), [], 7
        for i in range(len(ids)):
            count = 3 if i >= behind else 2
            mixed = np.array([ids[i], ids[-1 - i], ids[i // 2]])[:count]
            at = np.array([i, i, i - behind])[:count]
            logits.append(self.step("batch", mixed, at, state, SLOTS[:count])[:1])
        return _found(logits, state)


def _found(logits: list[np.ndarray], state: State) -> list[np.ndarray]:
    return [np.concatenate(logits), *(cache[SLOTS[0]] for caches in state for cache in caches)]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "weights", "cache"), CASES)
def test_a_history_gives_the_same_bits_however_it_is_fed(
    family: str, weights: str, cache: str, tmp_path: Path
) -> None:
    graph = build_graph(loaded(family)[1])
    templates = [*graph.templates.values(), *([graph.positions] if graph.positions else [])]
    library = Library(templates, weights, runnable()[-1], tmp_path / "t.so", 192, N, cache=cache)
    model, ids = Whole(graph, library), np.random.default_rng(0).integers(0, 1000, N)
    whole, *cut = (model.fed(ids, pieces) for pieces in ([N], *CUTS))
    alone = model.fed(ids, ONE_BY_ONE, "decode")
    assert np.isfinite(whole[0]).all()
    assert whole[0].std(axis=0).min() > 0
    others = {**{str(c): f for c, f in zip(CUTS, cut, strict=True)}, "alone": alone,
              "beside others": model.fed_beside_others(ids)}  # fmt: skip
    for how, found in others.items():
        for number, (got, want) in enumerate(zip(found, whole, strict=True)):
            np.testing.assert_array_equal(got, want, err_msg=f"{how}: {number or 'logits'}")
