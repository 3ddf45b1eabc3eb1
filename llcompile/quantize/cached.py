"""Whether the cache's format holds the keys and values that calibration sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from llcompile.ir.errors import CompileError
from llcompile.ir.graph import Block
from llrun.schema import CacheFormat

_HALF = 65504.0
# The largest value of each format: q8 has codes up to 127 and a float16 scale a head and token.
LIMITS = {
    CacheFormat.F16: _HALF,
    CacheFormat.Q8: 127 * _HALF,
    CacheFormat.F32: float(np.finfo(np.float32).max),
}


@dataclass
class Cached:
    """A walk's watcher: raises CompileError Q109 at the first layer that `cache` cannot hold.

    Layers count from 0, in the order of the model.
    """

    cache: CacheFormat
    _blocks: list[int] = field(default_factory=list)

    def __call__(
        self,
        block: Block,
        keys: Sequence[npt.NDArray[np.float32]],
        values: Sequence[npt.NDArray[np.float32]],
        /,
    ) -> None:
        for what, arrays in (("keys", keys), ("values", values)):
            largest = max(float(np.abs(array).max(initial=0)) for array in arrays)
            if np.isfinite(largest) and largest > LIMITS[self.cache]:
                raise self._unfit(block, what, largest)
        self._blocks.append(block.id)

    def _unfit(self, block: Block, what: str, largest: float) -> CompileError:
        remedy = "--quant f32, whose cache is float32"
        if self.cache == CacheFormat.F16 and largest <= LIMITS[CacheFormat.Q8]:
            remedy = f"--cache q8, which holds up to {LIMITS[CacheFormat.Q8]:.0f}"
        return CompileError(
            "Q109",
            f"calibrating layer {len(self._blocks)} (block {block.id}): its {what} reach {largest:.6g}, the "
            f"{self.cache} cache holds up to {LIMITS[self.cache]:.0f}. Use {remedy}.",
        )
