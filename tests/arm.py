"""The arm64 system that `make setup` makes in .arm/: whether it is there, and Python run in it under qemu."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
LAUNCHER = REPOSITORY / "scripts/arm-python"
CORTEX_A76, CORTEX_A72 = "cortex-a76", "cortex-a72"  # with and without dot product


def missing() -> str | None:
    """Why Arm code cannot run here; None if it can."""
    folder = REPOSITORY / ".arm"
    if (folder / "unavailable").exists():
        return (folder / "unavailable").read_text().strip()
    if not (folder / "stamp").exists():
        return "no arm64 system in .arm/: run `make setup`"
    return None


def environment(cpu: str) -> Mapping[str, str]:
    return {**os.environ, "ARM_CPU": cpu}


def start(*arguments: str, cpu: str = CORTEX_A76, log: Path) -> subprocess.Popen[bytes]:
    """Start the arm64 Python with `arguments` on `cpu`; all it says goes to the file `log`."""
    with log.open("wb") as out:
        return subprocess.Popen(
            [str(LAUNCHER), *arguments],
            env=environment(cpu),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )


def run(*arguments: str, cpu: str = CORTEX_A76, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Run the arm64 Python with `arguments` on `cpu` to its end."""
    return subprocess.run(
        [str(LAUNCHER), *arguments],
        env=environment(cpu),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
