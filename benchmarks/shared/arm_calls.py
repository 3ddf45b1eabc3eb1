"""Runs in the arm64 Python under qemu: calls function `main` of a library a number of times, on arrays of zeros.

arm_calls.py libtvm_runtime.so library.so calls '[[dtype, shape], ..]'
"""

from __future__ import annotations

import ctypes
import json
import sys

import numpy as np
import tvm_ffi


def main(runtime: str, library: str, calls: str, kinds: str) -> None:
    ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)
    module = tvm_ffi.load_module(library)
    arrays = []
    for dtype, shape in json.loads(kinds):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        raw = np.zeros(size + 64, np.uint8)
        start = -raw.ctypes.data % 64
        arrays.append(tvm_ffi.from_dlpack(raw[start : start + size].view(dtype).reshape(shape)))
    for _ in range(int(calls)):
        module["main"](*arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
