"""Whether this processor has the instructions that a library was compiled for."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Mapping
from pathlib import Path

from llrun.errors import RunError
from llrun.schema import Isa

AVX2 = frozenset({"avx2", "fma", "f16c", "bmi1", "bmi2"})
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni"}
# What Linux calls the features.
NEEDED: Mapping[Isa, frozenset[str]] = {
    Isa.AVX2: AVX2,
    Isa.AVX512VNNI: AVX512,
    Isa.NEON: frozenset({"asimd"}),
    Isa.NEON_DOTPROD: frozenset({"asimd", "asimddp"}),
    Isa.NEON_I8MM: frozenset({"asimd", "asimddp", "i8mm"}),
}
# arch/arm64/include/uapi/asm/hwcap.h: (auxiliary vector entry, bit).
AT_HWCAP, AT_HWCAP2 = 16, 26
ARM_BITS = {"asimd": (AT_HWCAP, 1), "asimddp": (AT_HWCAP, 20), "i8mm": (AT_HWCAP2, 13)}


def require(isa: Isa, target: str) -> None:
    """Raises RunError R206 when this processor lacks what code for `isa` uses: it would die by SIGILL."""
    missing = sorted(NEEDED[isa] - features())
    if missing:
        raise RunError(
            "R206",
            f"the library is built for {target}, this processor lacks {', '.join(missing)}: build with a target"
            " that fits this device",
        )


def features() -> frozenset[str]:
    """What this processor has, by Linux's names; on Arm those of ARM_BITS alone."""
    if platform.machine() == "aarch64":
        # Not /proc/cpuinfo, which is the host's under emulation.
        getauxval = ctypes.CDLL(None).getauxval
        getauxval.restype, getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
        return frozenset(name for name, (entry, bit) in ARM_BITS.items() if getauxval(entry) >> bit & 1)
    lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())
