"""Calibration: the float walk computes what transformers computes, for every family, and keeps what rounding needs."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from llcompile.graph import build_graph, output_in_pieces
from llcompile.ir.graph import Block, Graph
from llcompile.ir.model import WeightSource
from llcompile.ir.packing import Layout
from llcompile.quantize import calibrate, measure, pack, random_sequences, sequences_of, unpack
from llcompile.quantize.calibrate import factors_of
from llcompile.quantize.measure import matrix_sets
from llcompile.quantize.operators import erf
from llcompile.quantize.walk import Ids, Walk, finite_rows
from tests.models import FAMILIES, VOCAB, loaded, prompt, reference_logits
from tests.unit.quantize.checkpoint import Floats


def graph_of(family: str) -> Graph:
    return build_graph(loaded(family)[1])


def ids(*lengths: int) -> list[Ids]:
    return [np.asarray(prompt(length), np.int64) for length in lengths]


def walked(
    family: str, sequences: Sequence[Ids], wanted: Sequence[str] = ("logits",)
) -> dict[str, list[Floats]]:
    weights = loaded(family)[1].weights
    with ThreadPoolExecutor(2) as pool:
        walk = Walk(graph_of(family), weights, lambda *_: None, lambda _: None, pool, wanted)
        return walk.run(sequences)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_logits_of_the_walk_are_transformers(family: str) -> None:
    sequences = ids(7, 61, 200)
    found = walked(family, sequences)
    assert set(found) == {"logits"}
    for given, logits in zip(sequences, found["logits"], strict=True):
        expected = reference_logits(loaded(family)[0], given.tolist())
        assert logits[0].dtype == np.float32
        assert np.abs(logits[0] - expected).max() < 3e-5 * np.abs(expected).max()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_matrix_of_a_product_is_in_one_set(family: str) -> None:
    graph = graph_of(family)
    names = [name for one in matrix_sets(graph) for name in one.names]
    linear = set[str]()
    for block in graph.blocks:
        pairs = zip(graph.templates[block.template].weights, block.weights, strict=True)
        linear |= {name for weight, name in pairs if weight.role == "linear"}
    assert sorted(names) == sorted(linear)


def test_what_rounding_a_set_costs_is_what_transformers_finds() -> None:
    directory, model = loaded("llama")
    sequences, layout = ids(30, 20), Layout("tiled", "q4", 8)
    exact = [log_softmax(reference_logits(directory, given.tolist())) for given in sequences]
    for one in measure(graph_of("llama"), model.weights, sequences)[:2]:
        coarse = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        costs = list[float]()
        with torch.no_grad():
            for name in one.names:
                values = coarse.get_parameter(name).numpy()
                coarse.get_parameter(name).copy_(
                    torch.from_numpy(unpack(pack(values, layout, name), layout, values.shape))
                )
            for given, before in zip(sequences, exact, strict=True):
                after = log_softmax(coarse(torch.from_numpy(given[None])).logits[0].numpy())
                costs += (np.exp(before) * (before - after)).sum(axis=1).tolist()
        assert one.divergence["q4"] == pytest.approx(np.mean(costs), rel=1e-2)
        assert 0 < one.divergence["q8"] < one.divergence["q6"] < one.divergence["q5"] < one.divergence["q4"]


def log_softmax(logits: Floats) -> Floats:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def test_nothing_is_computed_that_no_product_needs() -> None:
    assert walked("llama", ids(5), ()) == {}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_matrix_gets_factors_and_the_progress_ends(family: str, tmp_path: Path) -> None:
    graph, told = graph_of(family), list[tuple[int, int]]()
    found = calibrate(
        graph, loaded(family)[1].weights, ids(64), tmp_path, lambda *pair: told.append(pair), jobs=2
    )
    for block in graph.blocks:
        for index, param in enumerate(graph.templates[block.template].weights):
            factors = found.factors(block, index)
            assert (factors is not None) == (param.role == "linear")
            if factors is not None:
                spans = -(-param.shape[1] // 128)
                assert (factors.spread.shape, factors.importance.shape) == ((spans, 128, 128), (spans, 128))
                assert np.array_equal(factors.spread, np.triu(factors.spread))
                assert (np.diagonal(factors.spread, 0, 1, 2) == 1).all()
                assert (factors.importance > 0).all()
    assert told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_factors_are_those_of_what_is_multiplied(tmp_path: Path) -> None:
    """The output head of a Llama reads the normed residual stream of every token, of all sequences."""
    graph, sequences = graph_of("llama"), ids(40, 80)
    head = graph.blocks[-1]
    (stream,) = head.inputs
    rows = np.concatenate([part[0] for part in walked("llama", sequences, [stream])[stream]])
    scale = walked_norm("llama", head)
    normed = rows / np.sqrt(np.square(rows).mean(1, keepdims=True) + 1e-6) * scale
    found = calibrate(graph, loaded("llama")[1].weights, sequences, tmp_path).factors(head, 1)
    assert found is not None
    expected = factors_of(normed.astype(np.float32))
    assert np.allclose(found.spread[0], expected[:128], atol=1e-4)
    assert np.allclose(found.importance[0], expected[128], rtol=1e-4)


def test_pieces_of_the_output_head_get_its_factors_and_are_not_multiplied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, whole, sequences = loaded("llama")[1], graph_of("llama"), ids(40, 80)
    cut_model, cut = output_in_pieces(model, whole)
    assert cut.output_blocks > 2
    expected = calibrate(whole, model.weights, sequences, tmp_path / "whole").factors(whole.blocks[-1], 1)
    read = list[str]()

    def told(source: WeightSource, start: int, stop: int) -> Floats:
        read.append(source.name)
        return finite_rows(source, start, stop)

    monkeypatch.setattr("llcompile.quantize.walk.finite_rows", told)
    found = calibrate(cut, cut_model.weights, sequences, tmp_path / "cut")
    assert "lm_head.weight" not in read
    assert expected is not None
    for block in cut.blocks[cut.output_start :]:
        factors = found.factors(block, len(block.weights) - 1)
        assert factors is not None
        assert np.array_equal(factors.spread, expected.spread)


def walked_norm(family: str, block: Block) -> Floats:
    from llcompile.quantize import read_rows

    source = loaded(family)[1].weights[block.weights[0]]
    return read_rows(source, 0, source.shape[0])


def test_matrices_that_multiply_one_tensor_share_a_file(tmp_path: Path) -> None:
    graph = graph_of("llama")
    found = calibrate(graph, loaded("llama")[1].weights, ids(64), tmp_path)
    attention = graph.blocks[1]
    linear = [i for i, p in enumerate(graph.templates[attention.template].weights) if p.role == "linear"]
    q, k, v, o = (found.files[attention.id, index] for index in linear)
    assert q == k == v != o
    assert set(tmp_path.iterdir()) == set(found.files.values())


def test_a_matrix_that_two_blocks_read_is_rounded_for_each(tmp_path: Path) -> None:
    graph = graph_of("llama")
    first, second = [block for block in graph.blocks if block.template == graph.blocks[1].template][:2]
    shared = replace(second, weights=first.weights)
    blocks = tuple(shared if block is second else block for block in graph.blocks)
    found = calibrate(replace(graph, blocks=blocks), loaded("llama")[1].weights, ids(64), tmp_path)
    ours, theirs = found.factors(first, 1), found.factors(shared, 1)
    assert ours is not None
    assert theirs is not None
    assert not np.array_equal(ours.spread, theirs.spread)


SCRIPT = """
import sys; from pathlib import Path
from llcompile.frontend import load_model
from llcompile.graph import build_graph
from llcompile.quantize import calibrate, random_sequences
model = load_model(sys.argv[1])
calibrate(build_graph(model), model.weights, random_sequences(1000, 512), Path(sys.argv[2]), jobs=int(sys.argv[3]))
"""


@pytest.mark.slow
def test_the_number_of_threads_changes_no_byte(tmp_path: Path) -> None:
    """Neither ours nor those of OpenBLAS, which sums in another order for another number of them."""
    found = []
    for index, (blas, jobs) in enumerate((("1", "1"), ("2", "3"))):
        folder = tmp_path / str(index)
        command = [sys.executable, "-c", SCRIPT, str(loaded("gpt2")[0]), str(folder), jobs]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": blas}
        subprocess.run(command, env=environment, check=True, capture_output=True)
        found.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert len(found[0]) > 10
    assert found[0] == found[1]


def test_random_tokens_cover_the_vocabulary_and_are_always_the_same() -> None:
    drawn = np.concatenate(random_sequences(50, 4096))
    assert drawn.shape == (2048,)
    assert set(drawn) == set(range(50))
    assert all(map(np.array_equal, random_sequences(50, 4096), random_sequences(50, 4096)))


@pytest.mark.parametrize(("positions", "lengths"), [(4096, [256] * 8), (100, [100] * 21)])
def test_sequences_fit_the_model(positions: int, lengths: list[int]) -> None:
    assert [len(one) for one in random_sequences(VOCAB, positions)] == lengths


def test_a_text_is_cut_into_sequences() -> None:
    cut = sequences_of(range(600), 4096)
    assert [len(one) for one in cut] == [256, 256, 88]
    assert np.concatenate(cut).tolist() == list(range(600))


def test_the_error_function() -> None:
    x = np.linspace(-5, 5, 2001, dtype=np.float32)
    assert np.abs(erf(x) - [math.erf(value) for value in x]).max() < 5e-7
