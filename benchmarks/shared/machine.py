"""What a figure was measured on: processor, kernel, huge pages, compiler, versions; and the memory's read rate."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

from shared.peer import CACHE, ROOT, SOURCE
from shared.processes import run

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_READ_MEGABYTES, _READ_PASSES = 1000, 15


def read_rate(threads: int) -> float:
    """GB/s that `threads` threads read from memory: the median of 15 passes over 1 GB."""
    return float(run([_reader(), str(threads), str(_READ_MEGABYTES), str(_READ_PASSES)]).stdout)


@cache
def _reader() -> Path:
    source = Path(__file__).with_name("read_rate.c")
    program = CACHE / "read_rate"
    if not program.is_file() or program.stat().st_mtime < source.stat().st_mtime:
        CACHE.mkdir(parents=True, exist_ok=True)
        compiler = os.environ.get("CC", "cc")
        run([compiler, "-O3", "-march=native", "-pthread", source, "-o", program])
    return program


def native_target() -> str:
    """The file of targets/ for this processor."""
    if platform.machine() == "aarch64":
        return "aarch64"
    return "x86-64-v4" if "avx512_vnni" in _processor().get("flags", "").split() else "x86-64-v3"


def description() -> list[str]:
    """Lines of Markdown on the machine and the programs."""
    compiler = _first_line(["c++", "--version"])
    hardware, ours = own_description()
    return [hardware, f"- llama.cpp of {SOURCE.replace('==', ' ')}, built by {compiler}", ours]


def own_description() -> list[str]:
    """The same where llrun is alone."""
    cpu = _processor()
    family = f"family {cpu.get('cpu family', '?')}, model {cpu.get('model', '?')}"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return [
        f"- {os.cpu_count()} cores of {cpu.get('model name', platform.machine())} ({family}; "
        f"{_vector_sets(cpu.get('flags', ''))}), {memory:.0f} GiB, Linux {platform.release()}, "
        f"huge pages: {_chosen(_HUGE_PAGES)}",
        f"- llrun at {_commit()}, CPython {platform.python_version()}, apache-tvm {version('apache-tvm')}",
    ]


def _commit() -> str:
    """The commit checked out, marked when anything but docs/, where the tables go, differs from it."""
    git = ["git", "-C", str(ROOT)]
    head = _first_line([*git, "rev-parse", "--short", "HEAD"])
    changed = _first_line([*git, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs"])
    return f"{head}-dirty" if changed and head != "unknown" else head


@cache
def _processor() -> dict[str, str]:
    """The first processor's entry in /proc/cpuinfo."""
    first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _vector_sets(flags: str) -> str:
    known = {
        "avx2": "AVX2",
        "avx_vnni": "AVX-VNNI",
        "avx512_vnni": "AVX-512 VNNI",
        "avx512_bf16": "AVX512-BF16",
    }
    found = [name for flag, name in known.items() if flag in flags.split()]
    return ", ".join(found) or "no AVX2"


def _chosen(setting: Path) -> str:
    """The bracketed word of a setting under /sys."""
    try:
        return setting.read_text().partition("[")[2].partition("]")[0]
    except OSError:
        return "none"


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.partition("\n")[0]
