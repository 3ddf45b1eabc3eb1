"""What a bundle is made for, as values: formats, sizes, kinds. Neither files nor third parties."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class WeightFormat(StrEnum):
    """How matrices are stored and read; llcompile.ir.packing has the layouts."""

    F32 = "f32"
    F16 = "f16"
    Q8 = "q8"
    Q6 = "q6"
    Q5 = "q5"
    Q4 = "q4"


class CacheFormat(StrEnum):
    """How keys and values are kept."""

    F32 = "f32"
    F16 = "f16"
    Q8 = "q8"


class WireFormat(StrEnum):
    """How activations travel between devices; llrun.programs.formats has the layouts."""

    F32 = "f32"
    F16 = "f16"
    Q8 = "q8"
    Q4 = "q4"


class Isa(StrEnum):
    """The instruction sets that kernels exist for; this is their one table."""

    AVX2 = "avx2"
    AVX512VNNI = "avx512vnni"
    NEON = "neon"
    NEON_DOTPROD = "neon_dotprod"
    NEON_I8MM = "neon_i8mm"


class TransmissionKind(StrEnum):
    """Sequential: to the next stage. Residual: it skips stages. Sum: a part of a block's result, or the sum of the
    parts, within a group."""

    SEQUENTIAL = "sequential"
    RESIDUAL = "residual"
    SUM = "sum"


class AllReduceKind(StrEnum):
    """How a group sums what its devices make, always in the order of their ranks. Star: all send to one, which sends
    the sum to all. Direct: everyone sends to everyone, and each sums. Ring: the running sum goes from rank to rank,
    then the whole one."""

    STAR = "star"
    DIRECT = "direct"
    RING = "ring"


class PlanStatus(StrEnum):
    """Optimal: proven within the gap asked for. Feasible: the best that was found in the time given."""

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"


class MoveEvent(StrEnum):
    """What may happen to a device: it is lost, or falls to half its speed."""

    LOST = "lost"
    HALF = "half"


class Rows(StrEnum):
    """Which of a step's rows an instruction is for: all, or the newest alone."""

    ALL = "all"
    LAST = "last"


@dataclass(frozen=True)
class Precision:
    """The formats of weights, of keys and values, and of what travels."""

    weights: WeightFormat
    cache: CacheFormat
    wire: WireFormat

    @classmethod
    def of(cls, quant: str, cache: str, wire: str = WireFormat.F32) -> Precision:
        """What `--quant`, `--cache` and `--wire` ask for: float32 weights keep a float32 cache."""
        weights = WeightFormat(quant)
        kept = CacheFormat.F32 if weights == WeightFormat.F32 else CacheFormat(cache)
        return cls(weights, kept, WireFormat(wire))


@dataclass(frozen=True)
class Shapes:
    """`context`: tokens that a sequence may hold. `chunk`: the most prompt tokens computed at once."""

    context: int
    chunk: int

    def __post_init__(self) -> None:
        if not 1 <= self.chunk <= self.context:
            raise ValueError(
                f"a chunk of {self.chunk} tokens and a context of {self.context}: 1 <= chunk <= context"
            )
