"""What a prompt's layers free is kept for the next layer, and not without bound."""

from __future__ import annotations

import subprocess
import sys

import pytest

ROUNDS, SIZE = 20, 8 << 20

# malloc as the runtime library calls it; counts the pages mapped after the first round, and what stays in the end.
CODE = f"""
import ctypes, resource, sys
from llrun.device.library import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
libc.memset.argtypes = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t

def touch(size, blocks):
    taken = [libc.malloc(size) for _ in range(blocks)]
    for one in taken:
        libc.memset(one, 1, size)
    for one in taken:
        libc.free(one)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

before = resident()
touch({SIZE}, 3)
start = faults()
for _ in range({ROUNDS}):
    touch({SIZE}, 3)
mapped = faults() - start
touch({SIZE}, 30)
print(mapped, resident() - before)
"""


def _run(mode: str) -> tuple[int, int]:
    command = [sys.executable, "-c", CODE, mode]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    mapped, kept = done.stdout.split()
    return int(mapped), int(kept)


@pytest.mark.skipif(sys.platform != "linux", reason="counts pages as Linux does")
def test_freed_buffers_are_used_again_and_a_large_heap_is_given_back() -> None:
    mapped, kept = _run("kept")
    assert mapped < 100
    assert kept < (64 << 20) + (4 << 20)
