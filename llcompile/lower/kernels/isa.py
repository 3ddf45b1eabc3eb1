"""Instruction sets: vector width, tile shape, and the micro-kernel for a group of quantised weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tvm import tirx

from llcompile.ir.errors import CompileError
from llcompile.lower.kernels.vector import Expr, intrinsic, type_of
from llcompile.lower.tiles import TILE_ROWS

STEPS = 8  # a group of 32 features is 8 steps of 4


class Isa(Protocol):
    """An instruction set as the kernels see it.

    A vector holds `lanes` float32. A tile of `rows` weight rows is `parts` vectors. `tokens`: block of tokens
    that a prefill multiplies with one tile of quantised weights at once; `float_tokens`: of float weights, which
    need fewer registers.
    """

    @property
    def name(self) -> str: ...
    @property
    def lanes(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def parts(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def float_tokens(self) -> int: ...

    def ahead(self, bits: int) -> int:
        """How many bytes before their use to ask for weights of `bits` bits; 0 leaves that to the processor.

        Those who look far enough ahead by themselves lose a little by being told.
        """

    def prepare(self, word: Expr) -> Expr:
        """What of a vector of 8-bit weights can be computed once for all tokens. int32xL -> int32xL"""

    def dot(self, bits: int, weights: Sequence[Expr], activations: Sequence[Expr], total: Expr) -> Expr:
        """Products of one group, summed for each of `lanes` rows: int32xL.

        `weights[s]`: step s of the prepared weights, int32xL: 4 int8 (q8) or 4 nibbles 0..15 (q4) a lane.
        `activations[s]`: int32, the 4 int8 that all rows share. `total`: the int32 sum of the activations.
        """


@dataclass(frozen=True)
class _Base:
    name: str
    lanes: int
    tokens: int
    float_tokens: int

    @property
    def rows(self) -> int:
        return TILE_ROWS[self.name]

    @property
    def parts(self) -> int:
        return self.rows // self.lanes

    def ahead(self, bits: int) -> int:
        return 0

    def prepare(self, word: Expr) -> Expr:
        return word

    def broadcast(self, value: Expr) -> Expr:
        return tirx.Broadcast(value, self.lanes)

    def _bytes(self, word: Expr) -> Expr:
        return tirx.reinterpret(f"int8x{4 * self.lanes}", word)

    def _zero_point(self, bits: int, total: Expr) -> Expr:
        """-8 * total: q4 stores q + 8."""
        return self.broadcast(total * tirx.const(-8 if bits == 4 else 0, "int32"))


@dataclass(frozen=True)
class Avx512Vnni(_Base):
    """vpdpbusd: unsigned weights times signed activations. Signed weights become unsigned by adding 128."""

    def ahead(self, bits: int) -> int:
        return 8192 if bits in (4, 16) else 0  # measured on Zen 5: half the bits, twice the work a line

    def prepare(self, word: Expr) -> Expr:
        return word ^ tirx.const(-0x7F7F7F80, type_of(word))

    def dot(self, bits: int, weights: Sequence[Expr], activations: Sequence[Expr], total: Expr) -> Expr:
        offset = -8 if bits == 4 else -128
        result = self.broadcast(total * tirx.const(offset, "int32"))
        for s in range(STEPS):
            a = self._bytes(self.broadcast(activations[s]))
            result = intrinsic("int32x16", "llvm.x86.avx512.vpdpbusd.512", result, self._bytes(weights[s]), a)
        return result


@dataclass(frozen=True)
class Avx2(_Base):
    """vpmaddubsw (unsigned times signed bytes, pairs summed with saturation to int16) and vpmaddwd.

    q4: 8 steps * 2 * 15 * 127 = 30480 fits in int16, so the steps are summed there. q8: |w| times the
    activation with w's sign, 2 * 127 * 127 = 32258, fits for one step.
    """

    def ahead(self, bits: int) -> int:
        return 8192

    def _madd(self, w: Expr, a: Expr) -> Expr:
        return intrinsic("int16x16", "llvm.x86.avx2.pmadd.ub.sw", w, a)

    def _widen(self, x: Expr) -> Expr:
        return intrinsic("int32x8", "llvm.x86.avx2.pmadd.wd", x, tirx.const(1, "int16x16"))

    def dot(self, bits: int, weights: Sequence[Expr], activations: Sequence[Expr], total: Expr) -> Expr:
        pairs = []
        for s in range(STEPS):
            w, a = self._bytes(weights[s]), self._bytes(self.broadcast(activations[s]))
            if bits == 8:
                w, a = tirx.abs(w), intrinsic("int8x32", "llvm.x86.avx2.psign.b", a, w)
            pairs.append(self._madd(w, a))
        if bits == 4:
            return self._widen(_sum(pairs)) + self._zero_point(bits, total)
        return _sum([self._widen(pair) for pair in pairs])


@dataclass(frozen=True)
class Neon(_Base):
    """smull, smlal and sadalp: Armv8.0 has no dot product.

    Products are summed in int16 as long as they fit (q4: 8 * 15 * 127 = 15240; q8: 2 * 127 * 127 = 32258),
    then pairwise in int32.
    """

    def dot(self, bits: int, weights: Sequence[Expr], activations: Sequence[Expr], total: Expr) -> Expr:
        together = STEPS if bits == 4 else 2
        halves = []
        for half in ("low", "high"):
            products = [self._product(half, weights[s], activations[s]) for s in range(STEPS)]
            chunks = [_sum(products[i : i + together]) for i in range(0, STEPS, together)]
            halves.append(_sum([intrinsic("int32x4", "llvm.aarch64.neon.saddlp", chunk) for chunk in chunks]))
        rows = intrinsic("int32x4", "llvm.aarch64.neon.addp", *halves)
        return rows + self._zero_point(bits, total) if bits == 4 else rows

    def _product(self, half: str, weights: Expr, activation: Expr) -> Expr:
        """int16x8: 2 rows of 4 features."""
        first = 0 if half == "low" else 8
        lanes = [tirx.const(i, "int32") for i in range(first, first + 8)]
        w = tirx.Shuffle([self._bytes(weights)], lanes)
        a = tirx.reinterpret("int8x8", tirx.Broadcast(activation, 2))
        return tirx.Cast("int16x8", w) * tirx.Cast("int16x8", a)


@dataclass(frozen=True)
class NeonDotprod(_Base):
    """sdot; nibbles 0..15 are signed bytes as they are."""

    def dot(self, bits: int, weights: Sequence[Expr], activations: Sequence[Expr], total: Expr) -> Expr:
        result = self._zero_point(bits, total)
        for s in range(STEPS):
            a = self._bytes(self.broadcast(activations[s]))
            w = self._bytes(weights[s])
            result = intrinsic("int32x4", "llvm.aarch64.neon.sdot.v4i32.v16i8", result, w, a)
        return result


def _sum(values: list[Expr]) -> Expr:
    result = values[0]
    for value in values[1:]:
        result = result + value
    return result


def isa_of(name: str) -> Isa:
    """The instruction set `name` of ir.Processor. Raises CompileError L101 for a name without kernels."""
    known: dict[str, Isa] = {
        "avx512vnni": Avx512Vnni("avx512vnni", lanes=16, tokens=8, float_tokens=8),
        "avx2": Avx2("avx2", lanes=8, tokens=4, float_tokens=8),
        "neon": Neon("neon", lanes=4, tokens=4, float_tokens=8),
        "neon_dotprod": NeonDotprod("neon_dotprod", lanes=4, tokens=4, float_tokens=8),
        "neon_i8mm": NeonDotprod("neon_i8mm", lanes=4, tokens=4, float_tokens=8),
    }
    if name not in known:
        raise CompileError("L101", f"no kernels for instruction set {name!r}: use one of {', '.join(known)}")
    return known[name]
