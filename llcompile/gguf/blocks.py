"""The types of a GGUF file's tensors: their names, what a row takes, and rows of blocks as float32."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import gguf
import numpy as np
import numpy.typing as npt
from gguf.quants import dequantize

Floats = npt.NDArray[np.float32]
# Types of one number each, of which weights may be. BF16 is one too, which the library takes for blocks of one.
FLOATS = ("F32", "F16", "BF16")


# Quantised types of which the library makes numbers.
BLOCKS = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0", "MXFP4",
    "NVFP4", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS",
)  # fmt: skip


@cache
def names() -> Mapping[int, str]:
    """The names of all types, by their number in files."""
    return {int(kind): str(kind.name) for kind in gguf.GGMLQuantizationType}


@cache
def _sizes() -> Mapping[str, tuple[int, int]]:
    """Numbers in a block and bytes of one, by the name of the type."""
    return {str(kind.name): size for kind, size in gguf.GGML_QUANT_SIZES.items()}


def block_columns(kind: str) -> int:
    """Numbers in a block of type `kind`: the columns of a tensor are a multiple."""
    return _sizes()[kind][0]


def row_bytes(kind: str, columns: int) -> int:
    """Bytes of `columns` numbers of type `kind`, a multiple of its block's."""
    numbers, size = _sizes()[kind]
    return columns // numbers * size


def dequantise(raw: npt.NDArray[np.uint8], kind: str) -> Floats:
    """Rows of blocks of type `kind`, uint8 (rows, row_bytes), as float32 (rows, columns).

    Each row for itself, by the gguf package; scales that are no finite numbers make values that are none.
    """
    with np.errstate(all="ignore"):
        made: Floats = dequantize(raw, gguf.GGMLQuantizationType[kind])
    return made
