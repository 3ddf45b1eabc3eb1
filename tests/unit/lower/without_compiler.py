"""Runs compiled MLP blocks in a process of its own with the device's runtime library alone, and says what it saw.

    python without_compiler.py libtvm_runtime.so library.so arrays.npz [library.so arrays.npz ...]

Writes for each a digest of the output, its largest difference from the expected one, and the errors that wrong
inputs give.
"""

import ctypes
import hashlib
import sys

import numpy as np

sys.modules["torch"] = None  # tvm_ffi would load it where it is installed; a device has none
import tvm_ffi  # noqa: E402

from llrun.memory import aligned_copy  # noqa: E402


def aligned(array: np.ndarray) -> object:
    return tvm_ffi.from_dlpack(aligned_copy(array))


def check(library: str, arrays: str) -> list[str]:
    machine = tvm_ffi.load_module(library)["vm_load_executable"]()
    machine["vm_initialization"](1, 0, 2)
    stored = np.load(arrays)
    x, y = stored["x"], stored["y"]
    params = [aligned(stored[f"param{i}"]) for i in range(len(stored.files) - 2)]
    whole = np.from_dlpack(machine["t2_prefill"](aligned(x), *params))
    last = np.from_dlpack(machine["t2_decode"](aligned(x[:, -1:]), *params))
    said = [hashlib.sha256(whole.tobytes()).hexdigest()]
    said += [str(max(np.abs(whole - y).max(), np.abs(last - y[:, -1:]).max()))]
    for wrong in (x[:, :, 1:], x.astype(np.float64), x[0]):
        try:
            machine["t2_prefill"](aligned(np.ascontiguousarray(wrong)), *params)
        except (RuntimeError, ValueError, TypeError) as error:
            said.append(type(error).__name__)
    return said


def main(runtime: str, *files: str) -> None:
    ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)
    for library, arrays in zip(files[::2], files[1::2], strict=True):
        sys.stdout.write(" ".join(check(library, arrays)) + "\n")
    assert "tvm" not in sys.modules


if __name__ == "__main__":
    main(*sys.argv[1:])
