"""numpy's matrix products on one thread each.

OpenBLAS splits a product over its threads, and sums in another order for another number of them: then the bytes of
a build would depend on the machine's cores. Its threads also spin while they wait for each other, which beside our
own cost four times the work.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product

from numpy.linalg import _umath_linalg

# As OpenBLAS, and the build of it within numpy's wheels, may call it.
_NAMES = [f"{p}openblas_{{}}_num_threads{s}" for p, s in product(("scipy_", ""), ("64_", ""))]


@contextmanager
def one_thread_a_product() -> Iterator[None]:
    """Within it OpenBLAS works on the calling thread alone; nothing happens where numpy has another library."""
    library = ctypes.CDLL(_umath_linalg.__file__)
    name = next((name for name in _NAMES if hasattr(library, name.format("set"))), None)
    if name is None:
        yield
        return
    threads = getattr(library, name.format("get"))()
    set_threads = getattr(library, name.format("set"))
    set_threads(1)
    try:
        yield
    finally:
        set_threads(threads)
