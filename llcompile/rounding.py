"""What weights of few bits are rounded for, and which matrices get how many of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from llcompile import bundle, frontend, graph, quantize
from llcompile.ir.errors import CompileError
from llcompile.ir.graph import Graph
from llcompile.ir.model import Model

if TYPE_CHECKING:
    from llcompile.pipeline import BuildOptions


def calibration_text(options: BuildOptions) -> str | None:
    """The text that weights of few bits shall be calibrated on, None for random tokens or none. Raises CompileError
    F160 (unreadable), F191 (nothing to calibrate)."""
    if options.calibrate in ("random", "none"):
        return None
    if not quantize.has_feedback(options.quant) or options.random_seed is not None:
        raise CompileError(
            "F191",
            f"--calibrate {options.calibrate} has no use here: it is for --quant q4, q5 or q6 and a checkpoint's "
            "weights; leave it out",
        )
    return frontend.read_text(Path(options.calibrate))


def calibration_sequences(
    options: BuildOptions, model: Model, text: str | None
) -> list[npt.NDArray[np.int64]]:
    """What to calibrate on; nothing where it would change nothing: random weights have no features to keep."""
    if (
        not quantize.has_feedback(options.quant)
        or model.random_seed is not None
        or options.calibrate == "none"
    ):
        return []
    if text is None:
        return quantize.random_sequences(model.vocab_size, model.max_positions)
    ids = frontend.text_ids(text, model, quantize.TOKENS)
    return quantize.sequences_of(ids, model.max_positions)


def check_bits(options: BuildOptions) -> None:
    """Raises CompileError F192 for --bits that no choice has, and where they choose nothing."""
    if options.bits is None:
        return
    if not quantize.LEAST_BITS <= options.bits <= quantize.MOST_BITS:
        reach = f"{quantize.LEAST_BITS:g} to {quantize.MOST_BITS:g}"
        raise CompileError("F192", f"--bits {options.bits:g} is beyond what formats have: use {reach}")
    if options.random_seed is not None:
        raise CompileError(
            "F192",
            f"--bits {options.bits:g} has no use here: formats are chosen by what rounding a checkpoint's weights "
            "costs; leave it out",
        )
    if options.quant != quantize.COARSEST:
        raise CompileError(
            "F192",
            f"--bits {options.bits:g} chooses each matrix's format itself: leave --quant {options.quant} out",
        )


def in_bits(
    options: BuildOptions, model: Model, dataflow: Graph, text: str | None, progress: bundle.Progress | None
) -> Graph:
    """`dataflow` whose matrices have the formats that cost least at `options.bits` a weight, as measured on what the
    rounding is for, or on random tokens."""
    assert options.bits is not None
    sequences = calibration_sequences(options, model, text)
    if not sequences:
        sequences = quantize.random_sequences(model.vocab_size, model.max_positions)
    sets = quantize.measure(dataflow, model.weights, sequences, progress, options.jobs)
    chosen = quantize.choose(sets, options.bits)
    return graph.with_formats(dataflow, chosen.formats, chosen.divergences)
