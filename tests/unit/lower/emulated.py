"""Kernels for Arm, run in the arm64 Python of .arm/ under qemu: one process for each instruction set, started when it
is first needed, which calls what it is told and ends when this process does."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from llcompile.lower.library import link
from tests import arm

CPUS = {"neon": arm.CORTEX_A72, "neon_dotprod": arm.CORTEX_A76, "neon_i8mm": "max"}
RUNTIME = Path(sys.prefix) / "share/llcompile/aarch64-linux-gnu/libtvm_runtime.so"
SERVER = Path(__file__).with_name("arm_server.py")


@dataclass(frozen=True)
class Emulator:
    process: subprocess.Popen[bytes]
    folder: Path
    log: Path

    def call(self, library: Path, function: str, arrays: tuple[np.ndarray, ...]) -> None:
        """Call `function` of `library` with copies of the arrays, and copy back what it leaves in them."""
        data = self.folder / "arrays"
        data.write_bytes(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays))
        kinds = [[a.dtype.name, list(a.shape)] for a in arrays]
        request = {"library": str(library), "function": function, "arrays": str(data), "kinds": kinds}
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().decode().strip()
        assert answer == "done", f"qemu: {answer or self._end()}"
        raw, start = data.read_bytes(), 0
        for array in arrays:
            array[...] = np.frombuffer(raw, array.dtype, array.size, start).reshape(array.shape)
            start += array.nbytes

    def _end(self) -> str:
        return f"exit {self.process.wait(30)}\n{self.log.read_text()}"


@lru_cache
def emulator(isa: str) -> Emulator:
    """The process that runs kernels for `isa`."""
    folder = Path(tempfile.mkdtemp(prefix=f"{isa}-"))
    log = folder / "log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [str(arm.LAUNCHER), str(SERVER), str(RUNTIME)],
            env={**arm.environment(CPUS[isa]), "TVM_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    return Emulator(process, folder, log)


@dataclass(frozen=True)
class EmulatedFunction:
    """A function compiled for an Arm processor, called as if it had been compiled for this one."""

    isa: str
    name: str
    library: Path

    def __call__(self, *arrays: np.ndarray) -> None:
        emulator(self.isa).call(self.library, self.name, arrays)


def emulate(built: Any, name: str, isa: str) -> EmulatedFunction:
    """Function `name` of the built module."""
    folder = Path(tempfile.mkdtemp(prefix="kernel-", dir=emulator(isa).folder))
    link(built, folder / "kernel.so")
    return EmulatedFunction(isa, name, folder / "kernel.so")
