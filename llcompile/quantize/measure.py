"""What rounding a model's matrices costs it: the output's divergence when those of one kind alone are rounded.

Measured on the tokens that the rounding is calibrated on, by a run of the model for each set of matrices that share a
format: alike matrices of a third of the layers. That is one format's; the others' follow from the errors of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from math import prod

import numpy as np

from llcompile.ir.errors import CompileError
from llcompile.ir.graph import Block, Graph, Template
from llcompile.ir.model import WeightSource
from llcompile.ir.packing import BITS, Layout
from llcompile.quantize.blas import one_thread_a_product
from llcompile.quantize.layouts import pack, unpack
from llcompile.quantize.program import program
from llcompile.quantize.reader import Floats
from llcompile.quantize.walk import Ids, Walk, finite_rows

COARSEST = "q4"  # that is measured
PARTS = 3  # of the layers, which have formats of their own
WORK = 5e12  # multiplications and additions of all runs together: as many tokens are looked at as that allows
LEAST_TOKENS, MOST_TOKENS = 32, 256
_ROWS = 64  # of a matrix, by which formats are compared
Key = tuple[str, str, tuple[int, ...], int]  # template, what is multiplied, shape, part of the layers


@dataclass(frozen=True)
class Measured:
    """Matrices that have one format: the checkpoint's `names`, and how many `elements` they have together.
    `divergence`: by format, the mean over positions of the Kullback-Leibler divergence of the next token's distribution
    from float32's where they alone are rounded, nats."""

    names: tuple[str, ...]
    elements: int
    divergence: Mapping[str, float]


@dataclass
class _Set:
    names: list[str] = field(default_factory=list)
    elements: int = 0
    errors: dict[str, float] = field(default_factory=lambda: dict.fromkeys(BITS, 0.0))


def measure(
    graph: Graph,
    weights: Mapping[str, WeightSource],
    sequences: Sequence[Ids],
    progress: Callable[[int, int], None] | None = None,
    jobs: int = 1,
) -> tuple[Measured, ...]:
    """What each set of matrices costs in each format, on some of the tokens of `sequences`.

    `progress` is told how many elements of matrices have been multiplied, and of how many. Raises CompileError as
    `calibrate` does.
    """
    sets = matrix_sets(graph)
    each = sum(one.elements for one in sets)
    tokens = _few(sequences, WORK / (2 * each * (len(sets) + 1)))
    done = 0

    def told(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(min(done, each * (len(sets) + 1)), each * (len(sets) + 1))

    logits = graph.blocks[-1].outputs[0]
    found = []
    silent = partial(np.seterr, all="ignore")
    with (
        one_thread_a_product(),
        np.errstate(all="ignore"),
        ThreadPoolExecutor(jobs, initializer=silent) as pool,
    ):

        def run(change: Callable[[str, Floats], Floats] | None) -> list[Floats]:
            walk = Walk(graph, weights, _unheeded, told, pool, (logits,), change=change)
            return [_log_softmax(one[0]) for one in walk.run(tokens)[logits]]

        exact = run(None)
        if not all(np.isfinite(one).all() for one in exact):
            raise CompileError(
                "Q108",
                "measuring what formats cost: the output is not finite on the tokens tried. The checkpoint may be "
                "damaged; download it again. Without --bits it is built all the same.",
            )
        for one in sets:
            coarse = run(partial(_coarse, frozenset(one.names)))
            found.append(_scaled(one, weights, _divergence(exact, coarse)))
    return tuple(found)


def matrix_sets(graph: Graph) -> list[_Set]:
    """The matrices of products by what they are alike in, each once, in the order of the blocks."""
    counts = {id: sum(block.template == id for block in graph.blocks) for id in graph.templates}
    seen, known = dict.fromkeys(counts, 0), set[str]()
    sets: dict[Key, _Set] = {}
    for block in graph.blocks:
        part = seen[block.template] * PARTS // counts[block.template]
        seen[block.template] += 1
        template = graph.templates[block.template]
        for index, tensor in _multiplied(template).items():
            name, shape = block.weights[index], template.weights[index].shape
            if name not in known:
                known.add(name)
                one = sets.setdefault((template.id, tensor, shape, part), _Set())
                one.names.append(name)
                one.elements += prod(shape)
    return list(sets.values())


def _multiplied(template: Template) -> dict[int, str]:
    """[index of a matrix]: the tensor that it multiplies."""
    numbers = {weight.name: index for index, weight in enumerate(template.weights)}
    steps = program(template, [spec.name for spec in template.outputs]).steps
    return {numbers[step.inputs[1]]: step.inputs[0] for step in steps if step.name == "Linear"}


def _few(sequences: Sequence[Ids], count: float) -> list[Ids]:
    """The first tokens, about `count` of them."""
    left, found = int(min(max(count, LEAST_TOKENS), MOST_TOKENS)), list[Ids]()
    for ids in sequences:
        if left > 1:
            found.append(ids[:left])
            left -= len(found[-1])
    return found


def _unheeded(block: Block, tensor: str, weight: int, rows: Floats) -> None:
    """Nobody looks at what is multiplied."""


def _coarse(names: frozenset[str], name: str, rows: Floats) -> Floats:
    return _rounded(rows, COARSEST, name) if name in names else rows


def _rounded(rows: Floats, format: str, name: str) -> Floats:
    layout = Layout("tiled", format, 8)
    return unpack(pack(rows, layout, name), layout, rows.shape)


def _scaled(one: _Set, weights: Mapping[str, WeightSource], coarsest: float) -> Measured:
    """The divergence goes with the square of the weights' errors, which some rows of each matrix tell."""
    for name in one.names:
        rows = finite_rows(weights[name], 0, min(_ROWS, weights[name].shape[0]))
        for format in BITS:
            one.errors[format] += float(
                np.square(_rounded(rows, format, name) - rows, dtype=np.float64).sum()
            )
    shares = {format: error / max(one.errors[COARSEST], 1e-300) for format, error in one.errors.items()}
    return Measured(tuple(one.names), one.elements, {f: coarsest * share for f, share in shares.items()})


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    made: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return made


def _divergence(exact: Sequence[Floats], coarse: Sequence[Floats]) -> float:
    sums = [(np.exp(a) * (a - b)).sum(dtype=np.float64) for a, b in zip(exact, coarse, strict=True)]
    return max(float(sum(sums)) / sum(len(a) for a in exact), 0.0)
