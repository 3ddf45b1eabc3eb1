"""What tensors look like on the wire."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from llrun.errors import RunError
from llrun.programs.formats import WIRE_CODES, may_be_coded, row_bytes
from llrun.schema import Tensor, WireFormat

DTYPE_CODES = {"float32": 1, "float16": 2, "int64": 3, "int32": 4, "int8": 5, "uint8": 6}  # on the wire


@dataclass(frozen=True)
class Limits:
    """Bounds on what a tensor frame may claim: rows of a chunk, positions, payload bytes."""

    chunk: int
    context: int
    payload_bytes: int


@dataclass(frozen=True)
class Layout:
    """What a tensor looks like: shape with -1 for the rows, bytes of one row in memory; and on the wire: its format,
    the code of that in frames, bytes of one row."""

    name: str
    dtype: str
    code: int
    shape: tuple[int, ...]
    axis: int
    row_bytes: int
    wire: WireFormat
    wire_bytes: int

    @property
    def coded(self) -> bool:
        """Whether it travels in another format than it is computed in."""
        return self.wire != WireFormat.F32

    @property
    def held_bytes(self) -> int:
        """Bytes of a row on a device that sends or receives it: as it is computed with, and as it travels."""
        return self.row_bytes + (self.wire_bytes if self.coded else 0)

    def dims(self, rows: int) -> tuple[int, ...]:
        return tuple(rows if size == -1 else size for size in self.shape)


def layout_of(tensor: Tensor) -> Layout:
    """The layout of `tensor`. Raises RunError R207 for an unknown dtype, a shape without one axis of rows, or a format
    that it cannot travel in."""
    code = DTYPE_CODES.get(tensor.dtype)
    if code is None:
        raise RunError(
            "R207", f"tensor {tensor.name} has dtype {tensor.dtype}, which this version does not know"
        )
    if tensor.shape.count(-1) != 1 or any(size == 0 or size < -1 for size in tensor.shape):
        raise RunError(
            "R207", f"tensor {tensor.name} has shape {list(tensor.shape)}: one -1, the rest positive"
        )
    if tensor.wire != WireFormat.F32 and not may_be_coded(tensor.dtype, tensor.shape):
        raise RunError(
            "R207",
            f"tensor {tensor.name} is to travel as {tensor.wire}: {tensor.dtype} of shape {list(tensor.shape)} cannot",
        )
    features = -prod(tensor.shape)
    held = features * np.dtype(tensor.dtype).itemsize
    sent = held if tensor.wire == WireFormat.F32 else row_bytes(tensor.wire, features)
    return Layout(
        tensor.name,
        tensor.dtype,
        WIRE_CODES.get(tensor.wire, code),
        tensor.shape,
        tensor.shape.index(-1),
        held,
        tensor.wire,
        sent,
    )
