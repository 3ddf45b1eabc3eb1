"""Tied weights of which the checkpoint holds several copies: one where they are equal, each its own where they differ.

That is what transformers does when it loads such a checkpoint, whatever tie_word_embeddings says.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from llcompile.frontend.checkpoint import StoredTensor, stored_dtype
from llcompile.frontend.weights import first_stored
from llcompile.ir.errors import CompileError

_STORED = {"f32": "<f4", "f16": "<f2", "bf16": "<u2"}
_BAND = 1 << 22  # elements compared at a time, 16 MB as float32


def differing_copies(
    aliases: Iterable[Sequence[str]],
    prefix: str,
    known: Mapping[str, str],
    stored: Mapping[str, StoredTensor],
) -> dict[str, str]:
    """Names of parameters that must not be tied, each with the name of the one it is tied to.

    `aliases`: each parameter's names in the model; `known`: checkpoint names by the names the model knows them under.
    Raises CompileError F140 (a file that cannot be read), F142 (dtype).
    """
    apart: dict[str, str] = {}
    for names in aliases:
        held = {name: tensor for name in names if (tensor := first_stored([name], prefix, known)) is not None}
        for name in list(held)[1:]:
            first = next(iter(held))
            if held[name] != held[first] and not equal(held[first], held[name], stored):
                apart[name] = first
    return apart


def equal(left: str, right: str, stored: Mapping[str, StoredTensor]) -> bool:
    """Whether two tensors of the checkpoint have one shape and the same values, whatever their dtypes."""
    first, second = stored[left], stored[right]
    if first.shape != second.shape:
        return False
    bands = zip(_bands(left, first), _bands(right, second), strict=True)
    return all(np.array_equal(a, b) for a, b in bands)


def _bands(name: str, tensor: StoredTensor) -> Iterator[npt.NDArray[np.float32]]:
    """The values in order, as float32."""
    dtype, size = np.dtype(_STORED[stored_dtype(name, tensor)]), int(np.prod(tensor.shape, dtype=np.int64))
    try:
        with open(tensor.path, "rb") as file:
            file.seek(tensor.offset)
            for start in range(0, size, _BAND):
                count = min(_BAND, size - start)
                raw = np.frombuffer(file.read(count * dtype.itemsize), dtype)
                if len(raw) < count:
                    raise CompileError("F140", f"{tensor.path} ends within tensor {name}. Fetch it again.")
                yield (
                    (raw.astype(np.uint32) << 16).view(np.float32)
                    if dtype.kind == "u"
                    else raw.astype(np.float32)
                )
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise CompileError("F140", f"{tensor.path} cannot be read ({reason}).") from None
