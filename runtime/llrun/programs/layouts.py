"""What tensors look like on the wire."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from llrun.errors import RunError
from llrun.schema import Tensor

DTYPE_CODES = {"float32": 1, "float16": 2, "int64": 3, "int32": 4, "int8": 5, "uint8": 6}  # on the wire


@dataclass(frozen=True)
class Limits:
    """Bounds on what a tensor frame may claim: rows of a chunk, positions, payload bytes."""

    chunk: int
    context: int
    payload_bytes: int


@dataclass(frozen=True)
class Layout:
    """What a tensor looks like on the wire: shape with -1 for the rows, bytes of one row."""

    name: str
    dtype: str
    code: int
    shape: tuple[int, ...]
    axis: int
    row_bytes: int

    def dims(self, rows: int) -> tuple[int, ...]:
        return tuple(rows if size == -1 else size for size in self.shape)


def layout_of(tensor: Tensor) -> Layout:
    """The layout of `tensor`. Raises RunError R207 for an unknown dtype or a shape without one axis of rows."""
    code = DTYPE_CODES.get(tensor.dtype)
    if code is None:
        raise RunError(
            "R207", f"tensor {tensor.name} has dtype {tensor.dtype}, which this version does not know"
        )
    if tensor.shape.count(-1) != 1 or any(size == 0 or size < -1 for size in tensor.shape):
        raise RunError(
            "R207", f"tensor {tensor.name} has shape {list(tensor.shape)}: one -1, the rest positive"
        )
    row_bytes = -prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
    return Layout(tensor.name, tensor.dtype, code, tensor.shape, tensor.shape.index(-1), row_bytes)
