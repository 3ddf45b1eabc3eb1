"""How keys and values lie in a cache: written token by token, read as vectors of float32.

Keys of 16 tokens lie together, transposed, so that a vector holds one component of several keys and scores need
no sum over lanes. In an 8-bit cache a token's key (and its value) has one float16 scale to each head.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as B

from llcompile.ir.graph import DTYPE_BYTES
from llcompile.ir.packing import KEY_BLOCK
from llcompile.lower.kernels.vector import Expr, local, run, vector_type


@dataclass(frozen=True)
class Cache:
    """Buffers: keys (S, Hkv, context/16, d, 16) and values (S, Hkv, context, dv); with 8 bits the scales of both
    (S, Hkv, context) float16."""

    keys: tirx.Buffer
    values: tirx.Buffer
    key_scales: tirx.Buffer | None = None
    value_scales: tirx.Buffer | None = None


@dataclass(frozen=True)
class Head:
    """One key-value head of one sequence's cache."""

    cache: Cache
    slot: Expr
    head: Expr

    def keys(self, token: Expr, component: Expr, lanes: int) -> Expr:
        """A component of `lanes` keys, of tokens that lie in one block: float32xL, not scaled."""
        index = [self.slot, self.head, token // KEY_BLOCK, component]
        return _widened(self.cache.keys[(*index, run(token % KEY_BLOCK, lanes))], lanes)

    def values(self, token: Expr, column: Expr, lanes: int) -> Expr:
        """`lanes` columns of a token's value: float32xL, not scaled."""
        return _widened(self.cache.values[self.slot, self.head, token, run(column, lanes)], lanes)

    def fetch_keys(self, token: Expr, component: Expr, ahead: int) -> None:
        """Ask for what lies `ahead` bytes after what `keys` reads."""
        keys = self.cache.keys
        index = [self.slot, self.head, token // KEY_BLOCK, component]
        _fetch(keys, index, token % KEY_BLOCK + ahead // DTYPE_BYTES[str(keys.dtype)])

    def fetch_values(self, token: Expr, column: Expr, ahead: int) -> None:
        """Ask for what lies `ahead` bytes after what `values` reads."""
        values = self.cache.values
        _fetch(values, [self.slot, self.head, token], column + ahead // DTYPE_BYTES[str(values.dtype)])

    def scales(self, buffer: tirx.Buffer, token: Expr, lanes: int) -> Expr:
        """The scales of `lanes` tokens: float32xL."""
        return _widened(buffer[self.slot, self.head, run(token, lanes)], lanes)

    def append(self, token: Expr, key: tirx.Buffer, value: tirx.Buffer) -> None:
        """Write a token's key (d,) and value (dv,), float32."""
        keys, values = self.cache.keys, self.cache.values

        def store_key(i: Expr, code: Expr) -> None:
            index = [self.slot, self.head, token // KEY_BLOCK, i, token % KEY_BLOCK]
            B.buffer_store(keys, code, index)

        def store_value(i: Expr, code: Expr) -> None:
            B.buffer_store(values, code, [self.slot, self.head, token, i])

        for vector, scales, store in (
            (key, self.cache.key_scales, store_key),
            (value, self.cache.value_scales, store_value),
        ):
            width = int(vector.shape[0])
            if scales is None:
                with B.serial(width) as i:
                    store(i, tirx.Cast(keys.dtype, vector[i]))
                continue
            scale = _scale(vector, width)
            B.buffer_store(scales, scale, [self.slot, self.head, token])
            inverse = B.Bind(_inverse(tirx.Cast("float32", scale)))
            with B.serial(width) as i:
                store(i, _code(vector[i] * inverse))


def _scale(vector: tirx.Buffer, width: int) -> Expr:
    """The largest size / 127, float16."""
    largest = local((1,))
    B.buffer_store(largest, tirx.const(0.0, "float32"), [0])
    with B.serial(width) as i:
        B.buffer_store(largest, tirx.max(largest[0], tirx.abs(vector[i])), [0])
    return B.Bind(tirx.Cast("float16", largest[0] * tirx.const(1 / 127, "float32")))


def _inverse(scale: Expr) -> Expr:
    """1 / scale; 0 of a scale that rounded to 0."""
    zero, one = tirx.const(0.0, "float32"), tirx.const(1.0, "float32")
    return tirx.Select(scale > zero, one / tirx.Select(scale > zero, scale, one), zero)


def _code(x: Expr) -> Expr:
    """x rounded to -127..127; the bounds hold what the rounding of the scale pushes beyond."""
    most = tirx.const(127.0, "float32")
    return tirx.Cast("int8", tirx.nearbyint(tirx.max(tirx.min(x, most), tirx.const(-127.0, "float32"))))


def _fetch(buffer: tirx.Buffer, index: list[Expr], last: Expr) -> None:
    """Ask for a line of memory; past the end of a cache this asks for whatever is there, which never faults."""
    read, often, data = (tirx.const(i, "int32") for i in (0, 3, 1))
    line = tirx.address_of(buffer[(*index, last)])
    B.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch.p0", line, read, often, data))


def _widened(vector: Expr, lanes: int) -> Expr:
    return tirx.Cast(vector_type("float32", lanes), vector)
