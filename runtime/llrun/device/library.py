"""The compiled library of a slice: the TVM runtime loaded without the compiler, and the functions by name."""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llrun.device.slice import StoredSlice, check_file
from llrun.errors import INTERNAL, RunError
from llrun.memory import Array

ELF_MACHINES = {62: "x86_64", 183: "aarch64"}
F_ADD_SEALS, ALL_SEALS = 1033, 0xF  # linux/fcntl.h: no change of size or content, no change of seals
CPU, NAIVE, POOLED = 1, 1, 2
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
KEPT_BYTES, LARGEST_KEPT_BYTES = 64 << 20, 32 << 20
Function = Callable[..., Any]


@dataclass(frozen=True)
class Library:
    """`functions` by name; `wrap` makes an array an argument, uncopied, and `unwrap` a result an array."""

    functions: Mapping[str, Function]
    wrap: Callable[[Array], Any]
    unwrap: Callable[[Any], Array]


def load_library(
    runtime: int, compiled: int, names: Iterable[str], cached: Collection[str], threads: int
) -> Library:
    """Load the runtime library and the compiled one, and bind `<name>_decode`, `<name>_prefill` and
    `<name>_batch` of `names`. Those not in `cached`, templates without caches, have no function for batches of
    their own: tokens of several sequences are to them as those of one.

    `runtime`, `compiled`: descriptors of what was hashed (`sealed_copy`), which stay open: the loader knows a
    library by its name, and a descriptor's number that is used again would name the first.

    Two virtual machines share the code: decode and batches reuse a pool of buffers of the same few sizes;
    prefill, whose lengths vary, frees its buffers, so that memory does not grow with the number of lengths seen.
    Raises RunError R205.
    """
    check_machine(runtime, "the runtime library")
    check_machine(compiled, "the library")
    # Read when the runtime makes its thread pool. Bound threads fight with other processes for the same
    # cores.
    os.environ["TVM_NUM_THREADS"] = str(threads)
    os.environ["TVM_BIND_THREADS"] = "0"
    with _without_torch():
        import tvm_ffi
    keep_freed_memory()
    try:
        ctypes.CDLL(_path(runtime), mode=ctypes.RTLD_GLOBAL)
        # load_module of tvm_ffi goes by the ending of a path, which a descriptor's lacks.
        module = tvm_ffi.get_global_func("ffi.Module.load_from_file.so")(_path(compiled), "so")
        tvm_ffi.get_global_func("ffi.ModuleGlobalsAdd")(module)
        pooled, naive = _machine(module, POOLED), _machine(module, NAIVE)
        functions = {}
        for name in names:
            functions[f"{name}_decode"] = pooled[f"{name}_decode"]
            functions[f"{name}_prefill"] = naive[f"{name}_prefill"]
            functions[f"{name}_batch"] = pooled[f"{name}_{'batch' if name in cached else 'prefill'}"]
    except (OSError, RuntimeError, AttributeError, ValueError) as error:
        raise RunError("R205", f"cannot load the library: {error}", INTERNAL) from error
    return Library(functions, tvm_ffi.from_dlpack, np.from_dlpack)


def _path(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


def sealed_copy(stored: StoredSlice, name: str) -> int:
    """A descriptor of a copy of the library `name` in memory that nobody can change, its sha256 checked.

    A library is mapped, not read: a file that is overwritten while it is in use would change what runs. The
    memory is that of a few MB. Raises RunError R201, R202, R205 where the system has no such memory.
    """
    try:
        copy = os.memfd_create(Path(name).name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        raise RunError("R205", f"cannot load {name}: no memory for it: {error.strerror}", INTERNAL) from error
    try:
        check_file(stored, name, lambda piece: _write_all(copy, piece))
        fcntl.fcntl(copy, F_ADD_SEALS, ALL_SEALS)
    except OSError as error:
        os.close(copy)
        raise RunError("R205", f"cannot load {name}: {error.strerror}", INTERNAL) from error
    except RunError:
        os.close(copy)
        raise
    return copy


def _write_all(descriptor: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(descriptor, piece) :]


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


def check_machine(descriptor: int, name: str) -> None:
    """Raises RunError R206 for a library that is not this machine's."""
    head = os.pread(descriptor, 20, 0)
    built = ELF_MACHINES.get(int.from_bytes(head[18:20], "little"), "an unknown processor")
    if head[:4] != b"\x7fELF" or built != platform.machine():
        raise RunError(
            "R206",
            f"{name} is built for {built}, this machine is {platform.machine()}:"
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
