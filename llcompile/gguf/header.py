"""The header of a GGUF file: keys with their values, and where tensors lie; read with bounds, believed after checks.

Format, little-endian: "GGUF", version (3, or 2, which is the same), the numbers of tensors and of keys; each key with
its type and value; each tensor with its sizes (fastest first), type and place; then, aligned, the data.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path

from llcompile.gguf.blocks import BLOCKS, FLOATS, block_columns, names, row_bytes
from llcompile.gguf.cursor import Cursor, Value
from llcompile.ir.errors import CompileError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MOST_KEYS, _MOST_TENSORS, _MOST_DIMENSIONS = 1 << 16, 1 << 17, 4
_LARGEST_SIZE = 1 << 48
_ALIGNMENT = 32


@dataclass(frozen=True)
class Tensor:
    """One tensor: `kind` is the name of its type (F32, Q4_K ...), `shape` has rows first, `offset` is absolute."""

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size_bytes(self) -> int:
        return prod(self.shape[:-1]) * row_bytes(self.kind, self.shape[-1])


@dataclass(frozen=True)
class Header:
    """What a file says: `values` by key, `tensors` by name, in the order of the file; `path` is absolute."""

    path: str
    values: Mapping[str, Value]
    tensors: Mapping[str, Tensor]


def is_gguf(path: Path) -> bool:
    """Whether the file begins as a GGUF file does. Raises CompileError F143 when it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise CompileError("F143", f"{path} cannot be read ({error.strerror}).") from None


def read_header(path: Path) -> Header:
    """Keys and tensors of the file at `path`. Raises CompileError F143 (the file), F144 (a tensor's type)."""
    try:
        with path.open("rb") as file:
            cursor = Cursor(path, file, os.fstat(file.fileno()).st_size)
            return _read(cursor)
    except OSError as error:
        raise CompileError("F143", f"{path} cannot be read ({error.strerror}).") from None


def _read(cursor: Cursor) -> Header:
    tensor_count, key_count = _counts(cursor)
    values: dict[str, Value] = {}
    for _ in range(key_count):
        key = cursor.name("a key")
        if key in values:
            raise cursor.damaged(f"the key {key!r} occurs twice")
        values[key] = cursor.value(key)
    _refuse_parts(cursor, values)
    found: dict[str, Tensor] = {}
    for _ in range(tensor_count):
        tensor = _tensor(cursor)
        if tensor.name in found:
            raise cursor.damaged(f"the tensor {tensor.name!r} occurs twice")
        found[tensor.name] = tensor
    start = _data_start(cursor, values)
    tensors = {name: Tensor(name, t.kind, t.shape, start + t.offset) for name, t in found.items()}
    _check_places(cursor, tensors)
    return Header(str(cursor.path.resolve()), values, tensors)


def _counts(cursor: Cursor) -> tuple[int, int]:
    """The numbers of tensors and keys."""
    if cursor.take(len(MAGIC), "the header") != MAGIC:
        raise cursor.damaged("it does not begin with GGUF")
    version = cursor.number("I", "the version")
    if version & 0xFFFF == 0:
        raise CompileError(
            "F143",
            f"{cursor.path} is written for big-endian machines, which is not supported. Convert it again.",
        )
    if version not in _VERSIONS:
        raise CompileError(
            "F143",
            f"{cursor.path} is of version {version} of GGUF; {_VERSIONS[0]} and {_VERSIONS[1]} can be read. Convert "
            "the model again.",
        )
    tensors, keys = cursor.number("Q", "the number of tensors"), cursor.number("Q", "the number of keys")
    for count, most, what in ((tensors, _MOST_TENSORS, "tensors"), (keys, _MOST_KEYS, "keys")):
        if count > most:
            raise cursor.damaged(f"{count} {what} are announced, {most} may be")
    return tensors, keys


def _refuse_parts(cursor: Cursor, values: Mapping[str, Value]) -> None:
    count = values.get("split.count", 0)
    if count not in (0, 1):
        raise CompileError(
            "F143",
            f"{cursor.path} is one of {count} parts of a model (split.count); a single file is read. Join them with "
            "llama.cpp's llama-gguf-split --merge.",
        )


def _tensor(cursor: Cursor) -> Tensor:
    """One entry of the table of tensors; its offset is still from the start of the data."""
    name = cursor.name("a tensor")
    dimensions = cursor.number("I", f"tensor {name}")
    if not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise cursor.damaged(f"tensor {name} has {dimensions} dimensions, 1 to {_MOST_DIMENSIONS} may be")
    shape = tuple(cursor.number("Q", f"tensor {name}") for _ in range(dimensions))[::-1]
    number, offset = cursor.number("I", f"tensor {name}"), cursor.number("Q", f"tensor {name}")
    if not all(0 < size <= _LARGEST_SIZE for size in shape) or prod(shape) > _LARGEST_SIZE:
        raise cursor.damaged(f"tensor {name} has the sizes {list(shape)}")
    kind = names().get(number, f"type {number}")
    if kind not in (*FLOATS, *BLOCKS):
        raise CompileError(
            "F144",
            f"{cursor.path}: tensor {name} is {kind}, which cannot be read; known are {', '.join((*FLOATS, *BLOCKS))}. "
            "Quantise the model to one of them.",
        )
    if shape[-1] % block_columns(kind):
        raise cursor.damaged(
            f"tensor {name} has {shape[-1]} columns, {kind} is in blocks of {block_columns(kind)}"
        )
    return Tensor(name, kind, shape, offset)


def _data_start(cursor: Cursor, values: Mapping[str, Value]) -> int:
    alignment = values.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.damaged(f"general.alignment is {alignment!r}, not a power of two")
    return -(-cursor.place // alignment) * alignment


def _check_places(cursor: Cursor, tensors: Mapping[str, Tensor]) -> None:
    """No two tensors share a byte, and each ends within the file."""
    ordered = sorted(tensors.values(), key=lambda tensor: tensor.offset)
    for left, right in pairwise(ordered):
        if right.offset < left.offset + left.size_bytes:
            raise cursor.damaged(f"tensors {left.name} and {right.name} overlap")
    for tensor in ordered:
        end = tensor.offset + tensor.size_bytes
        if end > cursor.size:
            raise cursor.damaged(
                f"truncated: tensor {tensor.name} ends at byte {end}, the file has {cursor.size}"
            )
