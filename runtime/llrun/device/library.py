"""The compiled library of a slice: the TVM runtime loaded without the compiler, and the functions by name."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llrun.errors import INTERNAL, RunError
from llrun.memory import Array

ELF_MACHINES = {62: "x86_64", 183: "aarch64"}
CPU, NAIVE, POOLED = 1, 1, 2
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
KEPT_BYTES, LARGEST_KEPT_BYTES = 64 << 20, 32 << 20
Function = Callable[..., Any]


@dataclass(frozen=True)
class Library:
    """`functions` by name; `wrap` makes an array an argument without copying it, `unwrap` a result an
    array."""

    functions: Mapping[str, Function]
    wrap: Callable[[Array], Any]
    unwrap: Callable[[Any], Array]


def load_library(
    runtime: Path, path: Path, names: Iterable[str], cached: Collection[str], threads: int
) -> Library:
    """Load the runtime library and the compiled one, and bind `<name>_decode`, `<name>_prefill` and
    `<name>_batch` of `names`. Those not in `cached`, templates without caches, have no function for batches of
    their own: tokens of several sequences are to them as those of one.

    Two virtual machines share the code: decode and batches reuse a pool of buffers of the same few sizes;
    prefill, whose lengths vary, frees its buffers, so that memory does not grow with the number of lengths seen.
    Raises RunError R205.
    """
    for file in (runtime, path):
        _check_machine(file)
    # Read when the runtime makes its thread pool. Bound threads fight with other processes for the same
    # cores.
    os.environ["TVM_NUM_THREADS"] = str(threads)
    os.environ["TVM_BIND_THREADS"] = "0"
    with _without_torch():
        import tvm_ffi
    keep_freed_memory()
    try:
        ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)
        module = tvm_ffi.load_module(str(path))
        pooled, naive = _machine(module, POOLED), _machine(module, NAIVE)
        functions = {}
        for name in names:
            functions[f"{name}_decode"] = pooled[f"{name}_decode"]
            functions[f"{name}_prefill"] = naive[f"{name}_prefill"]
            functions[f"{name}_batch"] = pooled[f"{name}_{'batch' if name in cached else 'prefill'}"]
    except (OSError, RuntimeError, AttributeError) as error:
        raise RunError("R205", f"cannot load {path}: {error}", INTERNAL) from error
    return Library(functions, tvm_ffi.from_dlpack, np.from_dlpack)


def _machine(module: Any, allocator: int) -> Any:
    machine = module["vm_load_executable"]()
    machine["vm_initialization"](CPU, 0, allocator)
    return machine


def keep_freed_memory() -> None:
    """Have the C library keep what is freed, up to KEPT_BYTES, for the next allocation.

    A prompt's temporaries are megabytes each, and freed by every call. By default each is given back to the
    system, and its pages are cleared and mapped anew at the next call: 18,000 page faults in three prompts
    of 512 tokens through 22 layers.
    """
    # Other C libraries than glibc have no mallopt, and keep their own counsel.
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def _check_machine(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(20)
    found = ELF_MACHINES.get(int.from_bytes(head[18:20], "little"), "an unknown processor")
    if head[:4] != b"\x7fELF" or found != platform.machine():
        raise RunError(
            "R206",
            f"{path} is built for {found}, this machine is {platform.machine()}:"
            " this device's part cannot run here",
        )


@contextmanager
def _without_torch() -> Iterator[None]:
    # tvm_ffi imports torch where it is installed: 230 MB and over a second for nothing. None in
    # sys.modules makes that import fail, which tvm_ffi allows for; a torch that is already loaded costs
    # nothing more.
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]
