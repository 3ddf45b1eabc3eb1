"""Every command of benchmarks/ starts from any folder, and what they share is no command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
HEAVY = {"arm_kernels", "kernels"}  # import the compiler's kernels, and TVM with them


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in HEAVY else [])
        for path in sorted([*BENCHMARKS.glob("*.py"), *BENCHMARKS.glob("balancing/*.py")])
    ],
)
def test_a_command_starts(path: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(path), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: {path.name} ")


def test_what_is_shared_is_no_command() -> None:
    # A device's side of counting, which runs in the emulated system; a head that is told what to ask;
    # devices of a group that do nothing but add; a head that is asked for logits again and again; a process of another
    # program that has no command for it.
    scripts = {
        "arm_calls.py",
        "driver.py",
        "sum_chain.py",
        "bare_sums.py",
        "asked_bits.py",
        "tpi_llm_program.py",
    }
    for path in (BENCHMARKS / "shared").glob("*.py"):
        assert ("__main__" in path.read_text()) == (path.name in scripts), path
