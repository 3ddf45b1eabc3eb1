"""What error feedback needs of each weight matrix: second moments of its input, on a few sequences of tokens.

Tokens drawn at random need no text, and suit no language more than another.

The same input gives the same files, whatever the number of threads, on machines of one kind of processor with one
version of numpy. On others OpenBLAS may sum in another order: moments then differ in their last bits, codes rarely.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from llcompile.ir.errors import CompileError
from llcompile.ir.graph import Block, Graph, Template
from llcompile.ir.model import WeightSource
from llcompile.quantize.blas import one_thread_a_product
from llcompile.quantize.cached import Cached
from llcompile.quantize.feedback import SPAN, Factors
from llcompile.quantize.reader import Floats
from llcompile.quantize.walk import Ids, Walk
from llrun.schema import CacheFormat

TOKENS, SEQUENCE = 2048, 256
# What is added to the second moments' diagonal, times itself and times its mean: the less, the more the sample is
# trusted. The first makes correlations less by as much for a feature with huge activations as for others, the second,
# GPTQ's, gives something to features that are never active. Other shares serve as well (docs/figures.md).
OWN_DAMP, MEAN_DAMP = 0.2, 0.01
_SEED = 0


@dataclass(frozen=True)
class Calibration:
    """Files of factors, by block and index of the weight in the block; matrices that multiply one tensor share one.

    A matrix that several blocks read has factors in each: each packs a copy of its own. A block that multiplies two
    tensors by one matrix keeps the first's.
    """

    files: Mapping[tuple[int, int], Path]

    def factors(self, block: Block, weight: int) -> Factors | None:
        """Mapped, not read; None for a weight that no product reads."""
        path = self.files.get((block.id, weight))
        if path is None:
            return None
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
        return Factors(stored[:, :SPAN], stored[:, SPAN])


def random_sequences(vocabulary: int, max_positions: int) -> list[Ids]:
    """2048 tokens drawn uniformly, the same every time, in sequences of 256 or as many as the model has positions."""
    length = min(SEQUENCE, max_positions)
    drawn = np.random.default_rng(_SEED).integers(0, vocabulary, (-(-TOKENS // length), length))
    return list(drawn)


def sequences_of(ids: Sequence[int], max_positions: int) -> list[Ids]:
    """`ids` cut into sequences as long as those of `random_sequences`; the last may be shorter."""
    length = min(SEQUENCE, max_positions)
    return [np.asarray(ids[start : start + length], np.int64) for start in range(0, len(ids), length)]


def calibrate(
    graph: Graph,
    weights: Mapping[str, WeightSource],
    sequences: Sequence[Ids],
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
    jobs: int = 1,
    cache: CacheFormat = CacheFormat.F32,
) -> Calibration:
    """Run `graph` in float32 on `sequences` of token ids, int64 (n,) each, and keep factors for its matrices.

    They go to files in `folder`: float32 (spans, 129, 128), `spread` and below it `importance` of each span.
    `progress` is told how many of all matrices' elements are done. `cache`: the format that keys and values will be
    kept in. Raises CompileError Q101-Q104 for weights that cannot be read or are not finite, Q108 where activations are
    not finite, Q109 for keys or values that the cache cannot hold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    total = sum(_linear_elements(graph.templates[block.template]) for block in graph.blocks)
    files: dict[tuple[int, int], Path] = {}
    done = 0

    def told(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    def observe(block: Block, tensor: str, weight: int, rows: Floats) -> None:
        path = folder / f"{block.id}-{tensor}.npy"
        if path not in files.values():
            spans = pool.map(
                lambda start: factors_of(rows[:, start : start + SPAN]), range(0, rows.shape[1], SPAN)
            )
            stored = np.stack(list(spans))
            if not np.isfinite(stored).all():
                raise _not_finite(block, weight)
            np.save(path, stored, allow_pickle=False)
        files.setdefault((block.id, weight), path)

    # What is not finite is told of where it reaches a product; numpy's warnings are each thread's own.
    silent = partial(np.seterr, all="ignore")
    with (
        one_thread_a_product(),
        np.errstate(all="ignore"),
        ThreadPoolExecutor(jobs, initializer=silent) as pool,
    ):
        Walk(graph, weights, observe, told, pool, watch=Cached(cache)).run(sequences)
    return Calibration(files)


def _linear_elements(template: Template) -> int:
    return sum(prod(param.shape) for param in template.weights if param.role == "linear")


def factors_of(rows: Floats) -> Floats:
    """`spread` (128, 128) and below it `importance` of a span's input `rows` (tokens, 128 or fewer); NaN where that
    is not finite.

    With H the damped second moments and J the exchange matrix, J H J = L Lᵀ gives H = R Rᵀ with R = J L J upper
    triangular, so H⁻¹ = R⁻ᵀ R⁻¹: the upper Cholesky factor of the inverse is R⁻¹, without inverting H.
    """
    features = rows.shape[1]
    out = np.zeros((SPAN + 1, SPAN), np.float32)
    out[range(SPAN), range(SPAN)] = out[SPAN] = 1
    wide = rows.astype(np.float64)
    moments = wide.T @ wide / len(rows)
    mean = np.trace(moments) / features
    if not np.isfinite(moments).all():
        return out * np.float32(np.nan)
    if mean > 0:  # else no feature is ever active, and none knows of another's error
        diagonal = range(features), range(features)
        moments[diagonal] += OWN_DAMP * moments[diagonal] + MEAN_DAMP * mean
        moments /= mean  # float32 holds the quotient whatever the activations' size
        upper = np.linalg.inv(np.linalg.cholesky(moments[::-1, ::-1])[::-1, ::-1])
        out[:features, :features] = np.triu(upper / np.diagonal(upper)[:, None])
        out[SPAN, :features] = np.diagonal(moments)
    return out


def _not_finite(block: Block, weight: int) -> CompileError:
    return CompileError(
        "Q108",
        f"calibrating block {block.id}: the input of {block.weights[weight]} is not finite on the tokens tried. The "
        "checkpoint may be damaged; download it again. --calibrate none builds it all the same.",
    )
