"""Instructions that a compiled Arm kernel executes, counted by a plugin of qemu."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llcompile.lower.library import link

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = Path(sys.prefix) / "share/llcompile/aarch64-linux-gnu/libtvm_runtime.so"
CALLS = 10
# qemu 7.2 has no model of the Neoverse N2.
_QEMU_CPUS = {"neoverse-n2": "max"}


def instructions_per_call(
    built: Any, arrays: Sequence[tuple[str, tuple[int, ...]]], cpu: str, folder: Path
) -> int:
    """Of function `main` on arrays of zeros (dtype, shape): the difference that `CALLS` more calls make.

    Ends the program with a message when the plugin cannot be built or run.
    """
    library = folder / "counted.so"
    link(built, library)
    runs = [_executed(library, arrays, cpu, calls, folder) for calls in (1, 1 + CALLS)]
    return (runs[1] - runs[0]) // CALLS


def _executed(
    library: Path, arrays: Sequence[tuple[str, tuple[int, ...]]], cpu: str, calls: int, folder: Path
) -> int:
    environment = {
        **os.environ,
        "ARM_CPU": _QEMU_CPUS.get(cpu, cpu),
        "QEMU_PLUGIN": f"file={_plugin(folder)}",
        "TVM_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
    }
    driver = Path(__file__).with_name("arm_calls.py")
    command = [str(ROOT / "scripts/arm-python"), str(driver), str(RUNTIME), str(library), str(calls)]
    done = subprocess.run(
        [*command, json.dumps(arrays)], env=environment, capture_output=True, text=True, check=False
    )
    found = re.search(r"^instructions (\d+)$", done.stderr, re.MULTILINE)
    if done.returncode or not found:
        sys.exit(f"failed: counting needs .arm/ and the qemu-user package: {done.stderr.strip()[-400:]}")
    return int(found[1])


def _plugin(folder: Path) -> Path:
    out = folder / "qemu_count.so"
    if not out.exists():
        code = Path(__file__).with_suffix(".c")
        command = ["gcc", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", str(out), str(code)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"failed: {code.name}: {done.stderr.strip()[:400]}")
    return out
