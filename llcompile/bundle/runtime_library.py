"""TVM's runtime library for a device's processor: of the installed wheel, or fetched at set-up."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from pathlib import Path

from llcompile.ir.errors import CompileError

NAME = "libtvm_runtime.so"


def runtime_library(triple: str) -> Path:
    """Where `libtvm_runtime.so` for the LLVM triple `triple` is.

    $LLC_RUNTIME_DIR/<triple> comes first; then, for this machine's own processor, the installed apache-tvm
    (found without importing it: that would map the whole compiler); then what `make setup` fetched into
    share/llcompile/<triple> of the Python environment; then the user's cache folder. Raises CompileError
    B110 when there is none.
    """
    candidates = _candidates(triple)
    library = next((path for path in candidates if path.is_file()), None)
    if library is None:
        looked = ", ".join(str(path.parent) for path in candidates)
        raise CompileError(
            "B110", f"no {NAME} for {triple} (looked in {looked}). Run `make setup`, which fetches it."
        )
    return library


def _candidates(triple: str) -> list[Path]:
    folders: list[Path] = []
    if override := os.environ.get("LLC_RUNTIME_DIR"):
        folders.append(Path(override) / triple)
    if triple.split("-")[0] == platform.machine():
        spec = importlib.util.find_spec("tvm")
        if spec and spec.origin:
            folders.append(Path(spec.origin).parent / "lib")
    folders.append(Path(sys.prefix) / "share/llcompile" / triple)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folders.append(Path(cache) / "llcompile" / triple)
    return [folder / NAME for folder in folders]
