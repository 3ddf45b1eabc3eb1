"""Instruction sets: vector width, tile shape, and the micro-kernel for a group of quantised weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tvm import tirx
from tvm.script.ir_builder import tirx as B

from llcompile.ir.errors import CompileError
from llcompile.lower.kernels.vector import Expr, intrinsic, splat, type_of
from llcompile.lower.tiles import TILE_ROWS
from llrun.schema import Isa as InstructionSet
from llrun.schema import values as names

STEPS = 8  # a group of 32 features is 8 steps of 4


@dataclass(frozen=True)
class Group:
    """Group g of the quantised activations of `tokens` tokens from `first`. words (n, G, 8) int32: step s holds 4
    int8; total (n, G) int32: their sum. pairs: see `blocks.pair_tokens`."""

    words: tirx.Buffer
    total: tirx.Buffer
    g: Expr
    first: Expr | int
    tokens: int
    pairs: tirx.Buffer | None = None

    def step(self, token: int, s: int) -> Expr:
        return self.words[self.first + token, self.g, s]

    def steps(self, token: int, s: int) -> Expr:
        """Steps s to s + 3: int32x4."""
        return self.words[self.first + token, self.g, tirx.Ramp(s, 1, 4)]

    def eights(self, pair: int) -> list[Expr]:
        """Tokens 2 * pair and 2 * pair + 1, 8 features of each, four times: int32x4."""
        assert self.pairs is not None
        return [self.pairs[self.index(pair, i)] for i in range(STEPS // 2)]

    def index(self, pair: int, i: int) -> Expr:
        """Where features 8 * i .. 8 * i + 7 of a pair lie in `pairs`."""
        block = (self.first + (self.tokens - 1)) // self.tokens
        group = block * self.words.shape[1] + self.g
        return tirx.Ramp((group * (self.tokens // 2) + pair) * (2 * STEPS) + 4 * i, 1, 4)

    def sum(self, token: int) -> Expr:
        return self.total[self.first + token, self.g]


class Isa(Protocol):
    """An instruction set as the kernels see it.

    A vector holds `lanes` float32. A tile of `rows` weight rows is `parts` vectors. `tokens`: block of tokens
    that a prefill multiplies with one tile of quantised weights at once (`block`: of so many bits); `float_tokens`:
    with `float_tiles` tiles of float weights, which need fewer registers. `apart`: several tokens are multiplied
    with one vector of rows at a time, for want of registers. `paired`: the tokens of a block (an even number) are
    read by twos, as `blocks.pair_tokens` lays them. `in_turn`: one token is multiplied with the quantised matrices
    of a result one after the other, as one stream is read faster than two.
    """

    @property
    def name(self) -> InstructionSet: ...
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
    @property
    def float_tiles(self) -> int: ...
    @property
    def apart(self) -> bool: ...
    @property
    def paired(self) -> bool: ...
    @property
    def in_turn(self) -> bool: ...

    def block(self, bits: int) -> int:
        """Tokens that are multiplied at once with a tile of weights of `bits` bits, when there are so many."""

    def ahead(self, bits: int, tokens: int) -> int:
        """How many bytes before their use to ask for weights of `bits` bits that `tokens` tokens are multiplied with
        at once; 0 leaves that to the processor.

        Those who look far enough ahead by themselves lose a little by being told.
        """

    def unpack(self, bits: int, words: Sequence[Expr], tokens: int) -> list[Expr]:
        """What can be computed of one group's weights, once for `tokens` tokens, for `dots`.

        `words`: the stored words, int32xL: as many vectors as a code has bits.
        """

    def dots(self, bits: int, weights: Sequence[Expr], group: Group) -> list[Expr]:
        """Products of one group, summed for each of `lanes` rows: integers as float32xL, one for each token."""


@dataclass(frozen=True)
class _Base:
    name: InstructionSet
    lanes: int
    tokens: int
    float_tokens: int
    apart: bool = False
    paired: bool = False
    in_turn: bool = False
    float_tiles: int = 1

    @property
    def rows(self) -> int:
        return TILE_ROWS[names.Isa(self.name)]

    @property
    def parts(self) -> int:
        return self.rows // self.lanes

    def block(self, bits: int) -> int:
        return self.tokens

    def ahead(self, bits: int, tokens: int) -> int:
        return 0

    def unpack(self, bits: int, words: Sequence[Expr], tokens: int) -> list[Expr]:
        """The 8 steps of the group, int32xL: 4 codes a lane, int8 (q8) or unsigned, of the fewer bits."""
        if bits == 8:
            return list(words)
        nibbles, four = splat(0x0F0F0F0F, words[0]), splat(4, words[0])
        steps = [half & nibbles for word in words[:4] for half in (word, word >> four)]
        return (
            [low | high for low, high in zip(steps, _upper(bits, words, 0x01010101), strict=True)]
            if bits > 4
            else steps
        )

    def broadcast(self, value: Expr) -> Expr:
        return tirx.Broadcast(value, self.lanes)

    def _bytes(self, word: Expr) -> Expr:
        return tirx.reinterpret(f"int8x{4 * self.lanes}", word)

    def _float(self, x: Expr) -> Expr:
        return tirx.Cast(f"float32x{self.lanes}", x)

    def _zero_point(self, bits: int, total: Expr) -> Expr:
        """What the products have too much: codes of fewer than 8 bits are stored with half their range added."""
        return self.broadcast(total * tirx.const(-(1 << (bits - 1)) if bits < 8 else 0, "int32"))


def _upper(bits: int, words: Sequence[Expr], byte: int) -> list[Expr]:
    """What the codes of each of the 8 steps have above their low nibble, in place. `byte`: 1 in each byte of a lane."""
    width = bits - 4
    mask, each = splat(((1 << width) - 1 << 4) * byte, words[0]), STEPS // width
    found = []
    for s in range(STEPS):
        word, up = words[4 + s // each], 4 - width * (s % each)
        amount = splat(abs(up), word)
        found.append((word << amount if up > 0 else word >> amount if up else word) & mask)
    return found


@dataclass(frozen=True)
class _X86(_Base, ABC):
    """One token after another, 4 int8 in every lane."""

    def dots(self, bits: int, weights: Sequence[Expr], group: Group) -> list[Expr]:
        steps = [[group.step(m, s) for s in range(STEPS)] for m in range(group.tokens)]
        return [self._float(self._dot(bits, weights, w, group.sum(m))) for m, w in enumerate(steps)]

    @abstractmethod
    def _dot(self, bits: int, weights: Sequence[Expr], activations: Sequence[Expr], total: Expr) -> Expr:
        """One token's products: `activations[s]`: int32, the 4 int8 that all rows share; `total`: their sum."""


@dataclass(frozen=True)
class Avx512Vnni(_X86):
    """vpdpbusd: unsigned weights times signed activations. Signed weights become unsigned by adding 128."""

    def ahead(self, bits: int, tokens: int) -> int:
        """Measured on Zen 5: a loss for one token of q8, a gain for others and for f16, for several of q8 most (2.7x);
        f32 was not measured."""
        if bits <= 8 and tokens > 1:
            return 8192
        return 5120 if bits < 8 or bits == 16 else 0

    def unpack(self, bits: int, words: Sequence[Expr], tokens: int) -> list[Expr]:
        if bits < 8:
            return super().unpack(bits, words, tokens)
        return [word ^ tirx.const(-0x7F7F7F80, type_of(word)) for word in words]

    def _dot(self, bits: int, weights: Sequence[Expr], activations: Sequence[Expr], total: Expr) -> Expr:
        result = self.broadcast(total * tirx.const(-(1 << (bits - 1)), "int32"))
        for s in range(STEPS):
            a = self._bytes(self.broadcast(activations[s]))
            result = intrinsic("int32x16", "llvm.x86.avx512.vpdpbusd.512", result, self._bytes(weights[s]), a)
        return result


@dataclass(frozen=True)
class Avx2(_X86):
    """vpmaddubsw (unsigned times signed bytes, pairs summed with saturation to int16) and vpmaddwd.

    Steps are summed in int16 as long as they fit: q4: 8 * 2 * 15 * 127 = 30480; q5: 4 * 2 * 31 * 127 = 31496; q6:
    2 * 2 * 63 * 127 = 32004; q8: |w| times the activation with w's sign, 2 * 127 * 127 = 32258.
    """

    def block(self, bits: int) -> int:
        return 2 if bits == 8 else self.tokens  # q8 keeps weights and their sizes: 16 registers hold no more

    def ahead(self, bits: int, tokens: int) -> int:
        return 8192

    def _madd(self, w: Expr, a: Expr) -> Expr:
        return intrinsic("int16x16", "llvm.x86.avx2.pmadd.ub.sw", w, a)

    def _widen(self, x: Expr) -> Expr:
        return intrinsic("int32x8", "llvm.x86.avx2.pmadd.wd", x, tirx.const(1, "int16x16"))

    def _dot(self, bits: int, weights: Sequence[Expr], activations: Sequence[Expr], total: Expr) -> Expr:
        pairs = []
        for s in range(STEPS):
            w, a = self._bytes(weights[s]), self._bytes(self.broadcast(activations[s]))
            if bits == 8:
                w, a = tirx.abs(w), intrinsic("int8x32", "llvm.x86.avx2.psign.b", a, w)
            pairs.append(self._madd(w, a))
        together = {4: 8, 5: 4, 6: 2, 8: 1}[bits]
        result = _sum([self._widen(_sum(pairs[i : i + together])) for i in range(0, STEPS, together)])
        return result + self._zero_point(bits, total) if bits < 8 else result


@dataclass(frozen=True)
class Neon(_Base):
    """smull, smlal and sadalp: Armv8.0 has no dot product.

    Products are summed in int16 as long as they fit (q4: 8 * 15 * 127 = 15240; q5: 8 * 31 * 127 = 31496; q6:
    4 * 63 * 127 = 32004; q8: 2 * 127 * 127 = 32258), then pairwise in int32.
    """

    def unpack(self, bits: int, words: Sequence[Expr], tokens: int) -> list[Expr]:
        """As bytes, which here shift by themselves: int8x16 each."""
        if bits == 8:
            return [self._bytes(word) for word in words]
        codes = [tirx.reinterpret("uint8x16", word) for word in words]
        steps = [half for c in codes[:4] for half in (c & splat(15, c), c >> splat(4, c))]
        if bits > 4:
            steps = [low | high for low, high in zip(steps, _upper(bits, codes, 1), strict=True)]
        return [tirx.reinterpret("int8x16", step) for step in steps]

    def dots(self, bits: int, weights: Sequence[Expr], group: Group) -> list[Expr]:
        return [self._dot(bits, weights, group, m) for m in range(group.tokens)]

    def _dot(self, bits: int, weights: Sequence[Expr], group: Group, token: int) -> Expr:
        together = {4: 8, 5: 8, 6: 4, 8: 2}[bits]
        shared = [_opaque(step) for step in self._shared(group, token)]
        halves = []
        for half in (0, 8):
            products = [_product(half, w, a) for w, a in zip(weights, shared, strict=True)]
            chunks = [_sum(products[i : i + together]) for i in range(0, STEPS, together)]
            halves.append(_sum([intrinsic("int32x4", "llvm.aarch64.neon.saddlp", chunk) for chunk in chunks]))
        rows = intrinsic("int32x4", "llvm.aarch64.neon.addp", *halves)
        return self._float(rows + self._zero_point(bits, group.sum(token)) if bits < 8 else rows)

    def _shared(self, group: Group, token: int) -> list[Expr]:
        """Each step in all rows: int8x16. One load serves four of them."""
        fours = [B.Bind(group.steps(token, s)) for s in range(0, STEPS, 4)]
        return [self._bytes(take([four], [lane] * 4)) for four in fours for lane in range(4)]


def _opaque(x: Expr) -> Expr:
    """x, of which LLVM knows nothing: so that it takes the halves of a register where they are (smull2), and does not
    make each half anew."""
    fence = intrinsic("float32x4", "llvm.arithmetic.fence", tirx.reinterpret("float32x4", x))
    return B.Bind(tirx.reinterpret("int8x16", fence))


def _product(half: int, weights: Expr, activation: Expr) -> Expr:
    """Bytes half .. half + 7, that is 2 rows of 4 features: int16x8."""
    w, a = (take([x], range(half, half + 8)) for x in (weights, activation))
    return tirx.Cast("int16x8", w) * tirx.Cast("int16x8", a)


@dataclass(frozen=True)
class NeonDotprod(Neon):
    """sdot, which takes 4 bytes of one lane for all rows.

    One token: codes of fewer than 8 bits, half their range added, are signed bytes as they are. Several: q4 16 * q, the
    others q, which costs the weights one step more and each token one less.
    """

    def unpack(self, bits: int, words: Sequence[Expr], tokens: int) -> list[Expr]:
        if bits == 8 or tokens == 1:
            return super().unpack(bits, words, tokens)
        if bits > 4:
            middle = tirx.const(1 << (bits - 1), "int8x16")
            return [step - middle for step in super().unpack(bits, words, tokens)]
        codes = [B.Bind(tirx.reinterpret("uint8x16", word) ^ tirx.const(0x88, "uint8x16")) for word in words]
        halves = [half for c in codes for half in (c << splat(4, c), c & splat(0xF0, c))]
        return [tirx.reinterpret("int8x16", half) for half in halves]

    def _dot(self, bits: int, weights: Sequence[Expr], group: Group, token: int) -> Expr:
        sixteenths, alone = bits == 4 and group.tokens > 1, group.tokens == 1
        result = self._zero_point(bits, group.sum(token)) if alone else splat(0, group.steps(token, 0))
        for w, a in zip(weights, self._shared(group, token), strict=True):
            result = intrinsic("int32x4", "llvm.aarch64.neon.sdot.v4i32.v16i8", result, w, a)
        return _sixteenth(result) if sixteenths else self._float(result)


def _sixteenth(x: Expr) -> Expr:
    """x / 16 as float32x4, by one conversion."""
    return intrinsic("float32x4", "llvm.aarch64.neon.vcvtfxs2fp.v4f32.v4i32", x, tirx.const(4, "int32"))


@dataclass(frozen=True)
class NeonI8mm(NeonDotprod):
    """smmla: 2 rows times 2 tokens, 8 features each. One token alone takes sdot."""

    def unpack(self, bits: int, words: Sequence[Expr], tokens: int) -> list[Expr]:
        """For several tokens: rows 0 and 1, rows 2 and 3 of features 0..7, then of 8..15, ..: int8x16 each."""
        steps = super().unpack(bits, words, tokens)
        if tokens == 1:
            return steps
        wide = [B.Bind(tirx.reinterpret("int32x4", step)) for step in steps]
        low, high = [0, 4, 1, 5], [2, 6, 3, 7]
        pairs = [take(wide[s : s + 2], lanes) for s in range(0, STEPS, 2) for lanes in (low, high)]
        return [self._bytes(pair) for pair in pairs]

    def dots(self, bits: int, weights: Sequence[Expr], group: Group) -> list[Expr]:
        if group.tokens == 1:
            return super().dots(bits, weights, group)
        pairs = range(group.tokens // 2)
        return [dot for pair in pairs for dot in self._pair(bits, weights, group.eights(pair))]

    def _pair(self, bits: int, weights: Sequence[Expr], activations: Sequence[Expr]) -> list[Expr]:
        """Two tokens."""
        eights = [B.Bind(self._bytes(eight)) for eight in activations]
        rows = []
        for half in (0, 1):
            result = tirx.const(0, "int32x4")
            for i, a in enumerate(eights):
                w = weights[2 * i + half]
                result = intrinsic("int32x4", "llvm.aarch64.neon.smmla.v4i32.v16i8", result, w, a)
            rows.append(B.Bind(result))
        tokens = [take(rows, lanes) for lanes in ([0, 2, 4, 6], [1, 3, 5, 7])]
        return [_sixteenth(token) if bits == 4 else self._float(token) for token in tokens]


def take(vectors: Sequence[Expr], lanes: Sequence[int]) -> Expr:
    """These lanes of the vectors laid end to end."""
    return tirx.Shuffle(list(vectors), [tirx.const(i, "int32") for i in lanes])


def _sum(values: list[Expr]) -> Expr:
    result = values[0]
    for value in values[1:]:
        result = result + value
    return result


def isa_of(name: str) -> Isa:
    """The instruction set `name` of ir.Processor. Raises CompileError L101 for a name without kernels."""
    isas: tuple[Isa, ...] = (
        Avx512Vnni(
            InstructionSet.AVX512VNNI, lanes=16, tokens=8, float_tokens=8, float_tiles=2, in_turn=True
        ),
        Avx2(InstructionSet.AVX2, lanes=8, tokens=4, float_tokens=5, float_tiles=2),
        Neon(InstructionSet.NEON, lanes=4, tokens=4, float_tokens=8, apart=True),
        NeonDotprod(InstructionSet.NEON_DOTPROD, lanes=4, tokens=8, float_tokens=8, apart=True),
        NeonI8mm(InstructionSet.NEON_I8MM, lanes=4, tokens=8, float_tokens=8, apart=True, paired=True),
    )
    known: dict[str, Isa] = {isa.name: isa for isa in isas}
    if name not in known:
        raise CompileError("L101", f"no kernels for instruction set {name!r}: use one of {', '.join(known)}")
    return known[name]
