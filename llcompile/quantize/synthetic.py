"""Random weights: a pure function of (seed, tensor name, position), whatever range is asked for at a time."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from llcompile.ir.model import WeightSource

CHUNK = 1 << 16
_LEVELS = 1 << 16


@lru_cache(maxsize=1)
def _normal_table() -> npt.NDArray[np.float32]:
    """Quantiles of the standard normal at the middles of 65536 equal parts: float32 (65536,), largest 4.32.

    Drawing by table costs about 1 ns a weight, a tenth of the ziggurat method, and calls no function of the C
    library whose last bit may differ from one processor to the next.
    """
    normal = NormalDist()
    half = [normal.inv_cdf((i + 0.5) / _LEVELS) for i in range(_LEVELS // 2)]
    return np.array(half + [-x for x in reversed(half)], np.float32)


def _chunk(key: int, index: int) -> npt.NDArray[np.uint16]:
    # random_raw, not a Generator's method: NumPy promises only a bit generator's stream across versions.
    raw = np.random.SFC64(np.random.SeedSequence([key, index])).random_raw(CHUNK // 4)
    return np.asarray(raw, "<u8").view("<u2")


def random_flat(source: WeightSource, seed: int, start: int, stop: int) -> npt.NDArray[np.float32]:
    """Elements start..stop-1, in row-major order, of the random tensor `source`: float32 (stop - start,)."""
    if source.init in ("ones", "zeros"):
        return np.full(stop - start, float(source.init == "ones"), np.float32)
    out = np.empty(stop - start, np.float32)
    table = _normal_table()
    key = int.from_bytes(hashlib.sha256(f"{seed}:{source.name}".encode()).digest()[:16], "little")
    for index in range(start // CHUNK, -(-stop // CHUNK)):
        base = index * CHUNK
        low, high = max(start, base), min(stop, base + CHUNK)
        draws = _chunk(key, index)[low - base : high - base].astype(np.intp)
        np.take(table, draws, out=out[low - start : high - start], mode="clip")
    out *= np.float32(source.std)
    return out
