"""Runs in the arm64 Python under qemu: calls functions of compiled libraries as its input says.

A line each: {"library": path, "function": name, "arrays": path of their bytes, "kinds": [[dtype, shape], ..]};
the arrays are written back.
"""

from __future__ import annotations

import ctypes
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tvm_ffi

from llrun.memory import aligned_copy


def main() -> None:
    ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
    for line in sys.stdin:
        call(json.loads(line))
        sys.stdout.write("done\n")
        sys.stdout.flush()


def call(request: dict[str, Any]) -> None:
    path = Path(request["arrays"])
    raw, start, arrays = path.read_bytes(), 0, []
    for dtype, shape in request["kinds"]:
        array = aligned_copy(np.frombuffer(raw, dtype, int(np.prod(shape)), start).reshape(shape))
        start += array.nbytes
        arrays.append(array)
    library(request["library"])[request["function"]](*(tvm_ffi.from_dlpack(a) for a in arrays))
    path.write_bytes(b"".join(a.tobytes() for a in arrays))


@cache
def library(path: str) -> Any:
    return tvm_ffi.load_module(path)


if __name__ == "__main__":
    main()
