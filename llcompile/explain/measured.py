"""What a run measured, read back to stand beside the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from llcompile.ir.errors import CompileError


class DeviceFigures(msgspec.Struct, frozen=True):
    peak_memory_bytes: int
    compute_s: float
    wait_s: float
    sent_bytes: int


class Figures(msgspec.Struct, frozen=True):
    """The part of `llrun --json`'s object that a plan predicts."""

    tokens: list[int]
    ttft_s: float
    tpot_s: float | None
    devices: dict[str, DeviceFigures]


def read_measured(path: Path) -> dict[str, Any]:
    """The figures in `path`, which holds what `llrun --json` printed. Raises CompileError B150."""
    try:
        figures = msgspec.json.decode(path.read_bytes(), type=Figures)
    except OSError as error:
        raise CompileError("B150", f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CompileError("B150", f"{path} is not what `llrun --json` prints: {error}") from error
    return dict(msgspec.to_builtins(figures))
