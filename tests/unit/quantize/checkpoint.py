"""Tensors as a checkpoint's file holds them, and templates made of a few weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from llcompile.ir.graph import Block, Template, WeightParam
from llcompile.ir.model import WeightSource
from llcompile.ir.packing import LoweredTemplate, layout_of, packed_params

Floats = npt.NDArray[np.float32]
LEADING = 24  # bytes before the tensor, as other tensors would be


def matrix(rows: int, columns: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def stored_bytes(values: Floats, dtype: str) -> bytes:
    if dtype == "bf16":
        return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype("<u2").tobytes()
    return values.astype({"f32": "<f4", "f16": "<f2"}[dtype]).tobytes()


def store(path: Path, values: Floats, dtype: str = "f32", transpose: bool = False) -> WeightSource:
    """Write `values` after a few other bytes; with `transpose` the other way round."""
    path.write_bytes(b"x" * LEADING + stored_bytes(values.T if transpose else values, dtype) + b"y" * 8)
    return WeightSource(path.stem, values.shape, dtype, str(path), LEADING, transpose)


def template(sources: dict[str, WeightSource], roles: dict[str, str]) -> Template:
    weights = tuple(WeightParam(name, source.shape, roles[name]) for name, source in sources.items())
    return Template("t0", b"", (), weights, (), (), (), 0, 0, 0)


def block(sources: dict[str, WeightSource]) -> Block:
    return Block(7, "t0", (), (), tuple(sources))


def lower(made: Template, quant: str, tile_rows: int = 16) -> LoweredTemplate:
    params = [
        param
        for index, weight in enumerate(made.weights)
        for param in packed_params(index, weight.name, weight.shape, layout_of(weight.role, quant, tile_rows))
    ]
    return LoweredTemplate("t0", tuple(params), ())
