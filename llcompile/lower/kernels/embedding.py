# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-calls=False, disallow-untyped-decorators=False
# TVMScript looks like Python but is parsed by the compiler, which knows its own types.
"""Rows of a table by token id (ir.packing, kind `rows`), as float32."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from llcompile.ir.packing import GROUP, pad
from llcompile.lower.kernels.vector import Extent


def embedding_float(dtype: str, n: Extent, rows: int, columns: int) -> tirx.PrimFunc:
    """data (rows, columns) `dtype`, ids (1, n) int64 -> (1, n, columns). An id outside 0..rows-1 reads the
    nearest row: callers check ids, this only keeps the read inside the table."""

    @T.prim_func(private=True, s_tir=True)
    def embedding(data_: T.handle, ids_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True})
        data = T.match_buffer(data_, (rows, columns), dtype)
        ids = T.match_buffer(ids_, (1, n), "int64")
        out = T.match_buffer(out_, (1, n, columns), "float32")
        for i in T.serial(n):
            row = T.max(T.min(ids[0, i], T.int64(rows - 1)), T.int64(0))
            for j in T.serial(columns):
                out[0, i, j] = T.cast(data[row, j], "float32")

    return embedding


def embedding_quantised(n: Extent, rows: int, columns: int) -> tirx.PrimFunc:
    """data (rows, Kpad) int8, scales (rows, Kpad / 32) float16, ids (1, n) int64 -> (1, n, columns)."""
    width = pad(columns, GROUP)

    @T.prim_func(private=True, s_tir=True)
    def embedding(data_: T.handle, scales_: T.handle, ids_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True})
        data = T.match_buffer(data_, (rows, width), "int8")
        scales = T.match_buffer(scales_, (rows, width // GROUP), "float16")
        ids = T.match_buffer(ids_, (1, n), "int64")
        out = T.match_buffer(out_, (1, n, columns), "float32")
        for i in T.serial(n):
            row = T.max(T.min(ids[0, i], T.int64(rows - 1)), T.int64(0))
            for j in T.serial(columns):
                out[0, i, j] = T.cast(data[row, j], "float32") * T.cast(scales[row, j // GROUP], "float32")

    return embedding
